// Buys with npm @getalby/lightning-tools: `fetchWithL402` or `fetch402`, whichever the argument names. Job and outcome are as in
// l402_pypi.py. The wallet is lnd (./lnd.mjs), or with NWC_URL in the environment whatever is behind that.
import "./websocket.mjs";
import { fetch402, fetchWithL402 } from "@getalby/lightning-tools/402";
import { NWCClient } from "@getalby/sdk";
import { fromFetch, job } from "./job.mjs";
import { pay } from "./lnd.mjs";

const { NWC_URL } = process.env;
const nwc = NWC_URL && new NWCClient({ nostrWalletConnectUrl: NWC_URL });
const paid = [];
const wallet = {
  async payInvoice({ invoice }) {
    paid.push(invoice);
    return nwc ? nwc.payInvoice({ invoice }) : pay(invoice);
  },
};

const buy = { fetch402, fetchWithL402 }[process.argv[2]];
const answers = [];
// Only the caller keeps credentials here: handed back for the same address, as the package's documentation says.
const kept = new Map();
for (const { url, method, headers, body } of job.requests) {
  try {
    const response = await buy(url, { method, headers, body }, { wallet, credentials: kept.get(url) });
    if (response.payment) kept.set(url, response.payment.credentials);
    answers.push(await fromFetch(response));
  } catch (error) {
    answers.push({ error: [error.message, error.cause?.message].filter(Boolean).join(": ") });
  }
}
nwc?.close();
process.stdout.write(`${JSON.stringify({ answers, paid })}\n`);
