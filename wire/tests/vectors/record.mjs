// Feeds ours.json to the official npm packages and records what they send: node record.mjs [directory with node_modules].
// Packages: @x402/core, @x402/evm, @x402/fetch 2.27.0, x402-fetch and x402 1.2.0, viem 2.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import assert from "node:assert/strict";

const require = createRequire(pathToFileURL((process.argv[2] ?? process.cwd()) + "/"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href).then((module) => ({ ...module.default, ...module }));
const { wrapFetchWithPayment, x402Client, x402HTTPClient } = await load("@x402/fetch");
const { registerExactEvmScheme } = await load("@x402/evm/exact/client");
const http = await load("@x402/core/http");
const { validatePaymentRequired, validatePaymentPayload } = await load("@x402/core/schemas");
const legacy = await load("x402-fetch");
const { exact } = await load("x402/schemes");
const { PaymentRequirementsSchema } = await load("x402/types");
const { privateKeyToAccount } = await load("viem/accounts");
const { createWalletClient, http: transport } = await load("viem");
const { baseSepolia } = await load("viem/chains");

const here = (name) => new URL(name, import.meta.url);
const ours = JSON.parse(readFileSync(here("ours.json")));
const url = "https://api.example.com/v1/answer?q=1&lang=en";
// The first key of every development chain.
const key = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
const account = privateKeyToAccount(key);

// A seller that bills once and takes whatever comes then.
function seller(headers, body) {
  const sent = [];
  const fetch = async (input, init) => {
    const request = new Request(input, init);
    sent.push(request);
    return sent.length === 1
      ? new Response(body, { status: 402, headers: { "content-type": "application/problem+json", ...headers } })
      : new Response("{}", { status: 200, headers: { "PAYMENT-RESPONSE": ours.payment_response } });
  };
  return { fetch, paid: (name) => sent[1].headers.get(name) };
}

const client = new x402Client();
registerExactEvmScheme(client, { signer: account });

const v2 = seller({ "PAYMENT-REQUIRED": ours.payment_required }, JSON.stringify(ours.body));
await wrapFetchWithPayment(v2.fetch, client)(url);
const v1 = seller({}, JSON.stringify(ours.body));
await wrapFetchWithPayment(v1.fetch, client)(url);
const old = seller({}, JSON.stringify(ours.body));
await legacy.wrapFetchWithPayment(old.fetch, createWalletClient({ account, chain: baseSepolia, transport: transport() }))(url);

// What we write must pass their decoders.
validatePaymentRequired(http.decodePaymentRequiredHeader(ours.payment_required));
validatePaymentPayload(http.decodePaymentSignatureHeader(ours.payment_signature));
ours.body.accepts.forEach((requirement) => PaymentRequirementsSchema.parse(requirement));
assert.equal(exact.evm.decodePayment(ours.x_payment).payload.authorization.value, "10000");
assert.equal(http.decodePaymentResponseHeader(ours.payment_response).success, true);
assert.equal(legacy.decodeXPaymentResponse(ours.x_payment_response).network, "base-sepolia");
const bill = new x402HTTPClient(client).getPaymentRequiredResponse(() => ours.payment_required);
assert.deepEqual(http.decodePaymentSignatureHeader(ours.payment_signature).accepted, bill.accepts[0]);

const [requirement] = bill.accepts;
const settled = http.decodePaymentResponseHeader(ours.payment_response);
const { payer, network } = settled;
const refused = { success: false, errorReason: "invalid_exact_evm_insufficient_balance", payer, transaction: "", network };
const recorded = {
  v2: { header: v2.paid("PAYMENT-SIGNATURE") },
  v1: { header: v1.paid("X-PAYMENT") },
  legacy_v1: { header: old.paid("X-PAYMENT") },
  payment_required: http.encodePaymentRequiredHeader({ ...bill, accepts: [requirement] }),
  payment_response: http.encodePaymentResponseHeader(settled),
  payment_response_refused: http.encodePaymentResponseHeader(refused),
};
writeFileSync(here("npm.json"), JSON.stringify(recorded, null, 2) + "\n");
