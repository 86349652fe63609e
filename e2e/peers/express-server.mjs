// The official stack as a peer: @x402/express before one paid and one free route, its facilitator in the same process.
//
// Environment: RPC_URL; PAY_TO; RELAYER_KEYS, 0x-prefixed private keys separated by commas (settlements go round robin);
// PRICE [$0.01]; NETWORK [eip155:84532]; PORT [0]; POLL_MS [50], how often it asks the node for receipts.
// GET /paid costs PRICE, GET /free nothing; both answer {"ok":true}. Prints {"port": N} when it listens.
//
// Nonces come from viem's nonce manager: without it the official facilitator serves 60 of 160 concurrent payments,
// and a benchmark against that would flatter us.
import { x402Facilitator } from "@x402/core/facilitator";
import { toFacilitatorEvmSigner } from "@x402/evm";
import { registerExactEvmScheme } from "@x402/evm/exact/facilitator";
import { ExactEvmScheme } from "@x402/evm/exact/server";
import { paymentMiddleware, x402ResourceServer } from "@x402/express";
import express from "express";
import { createWalletClient, defineChain, http, publicActions } from "viem";
import { nonceManager, privateKeyToAccount } from "viem/accounts";

const { RPC_URL, PAY_TO, RELAYER_KEYS, PRICE = "$0.01", NETWORK = "eip155:84532", PORT = "0", POLL_MS = "50" } = process.env;
for (const [name, value] of Object.entries({ RPC_URL, PAY_TO, RELAYER_KEYS })) {
  if (!value) throw new Error(`${name} must be set`);
}

const chain = defineChain({
  id: Number(NETWORK.split(":")[1]),
  name: NETWORK,
  nativeCurrency: { name: "Ether", symbol: "ETH", decimals: 18 },
  rpcUrls: { default: { http: [RPC_URL] } },
});

function facilitator(key) {
  const wallet = createWalletClient({
    account: privateKeyToAccount(key, { nonceManager }),
    chain,
    transport: http(RPC_URL),
    pollingInterval: Number(POLL_MS),
  }).extend(publicActions);
  const signer = toFacilitatorEvmSigner({
    address: wallet.account.address,
    readContract: (args) => wallet.readContract(args),
    verifyTypedData: (args) => wallet.verifyTypedData(args),
    writeContract: (args) => wallet.writeContract(args),
    sendTransaction: (args) => wallet.sendTransaction(args),
    waitForTransactionReceipt: (args) => wallet.waitForTransactionReceipt(args),
    getCode: (args) => wallet.getCode(args),
  });
  return registerExactEvmScheme(new x402Facilitator(), { signer, networks: NETWORK });
}

const facilitators = RELAYER_KEYS.split(",").map(facilitator);
let turn = 0;
const next = () => facilitators[turn++ % facilitators.length];
const inProcess = {
  verify: (payload, requirements) => next().verify(payload, requirements),
  settle: (payload, requirements) => next().settle(payload, requirements),
  getSupported: async () => facilitators[0].getSupported(),
};

const server = new x402ResourceServer(inProcess).register(NETWORK, new ExactEvmScheme());
const price = { scheme: "exact", price: PRICE, network: NETWORK, payTo: PAY_TO };
const app = express();
app.disable("x-powered-by");
app.use(paymentMiddleware({ "GET /paid": { accepts: price, description: "a paid answer", mimeType: "application/json" } }, server));
app.get(["/paid", "/free"], (_request, response) => response.json({ ok: true }));
const listener = app.listen(Number(PORT), "127.0.0.1", () => {
  process.stdout.write(`${JSON.stringify({ port: listener.address().port })}\n`);
});
