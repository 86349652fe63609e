// A wallet over Nostr Wallet Connect (NIP-47): Alby's wallet service before an lnd, and a Nostr relay, in one process.
//
// Environment: that of ../clients/lnd.mjs; PORT of the relay; WALLET_SECRET and CLIENT_SECRET, 32 bytes in hex; WITHHOLD_PREIMAGE, set
// to anything: it pays and does not tell the preimage, as some custodial wallets do. Prints {"url": "nostr+walletconnect://.."} when
// it can be asked. Does get_info, get_balance, make_invoice, lookup_invoice, list_transactions, pay_invoice; tells payment_received.
import "../clients/websocket.mjs";
import { NWCWalletService, NWCWalletServiceKeyPair } from "@getalby/sdk";
import { EventRepository } from "@nostr-relay/common";
import { NostrRelay } from "@nostr-relay/core";
import { getPublicKey, matchFilter } from "nostr-tools";
import { WebSocketServer } from "ws";
import { hexOf, lnd, pay, stream, urlBase64Of } from "../clients/lnd.mjs";

const { PORT, WALLET_SECRET, CLIENT_SECRET, WITHHOLD_PREIMAGE } = process.env;
const relayUrl = `ws://127.0.0.1:${PORT}`;
const methods = ["get_info", "get_balance", "make_invoice", "lookup_invoice", "list_transactions", "pay_invoice"];

/** Keeps events in memory; of a replaceable kind the newest of each author (NIP-01). */
class Memory extends EventRepository {
  #events = [];
  isSearchSupported = () => false;
  find = (filter) => this.#events.filter((event) => matchFilter(filter, event));
  destroy = async () => {};
  upsert(event) {
    const replaceable = event.kind >= 10_000 && event.kind < 20_000;
    this.#events = this.#events.filter((kept) => !(replaceable && kept.kind === event.kind && kept.pubkey === event.pubkey));
    this.#events.push(event);
    return { isDuplicate: false };
  }
}

async function startRelay() {
  const relay = new NostrRelay(new Memory());
  const server = new WebSocketServer({ host: "127.0.0.1", port: Number(PORT) });
  server.on("connection", (socket, request) => {
    relay.handleConnection(socket, request.socket.remoteAddress);
    socket.on("message", (message) => relay.handleMessage(socket, JSON.parse(message)));
    socket.on("close", () => relay.handleDisconnect(socket));
  });
  await new Promise((resolve) => server.on("listening", resolve));
}

const states = { OPEN: "pending", SETTLED: "settled", CANCELED: "expired", ACCEPTED: "accepted" };

/** An invoice of lnd's as NIP-47 tells it. */
function incoming(invoice) {
  const settled = invoice.state === "SETTLED";
  return {
    type: "incoming",
    state: states[invoice.state],
    invoice: invoice.payment_request,
    description: invoice.memo,
    payment_hash: hexOf(invoice.r_hash),
    amount: Number(settled ? invoice.amt_paid_msat : invoice.value_msat),
    fees_paid: 0,
    created_at: Number(invoice.creation_date),
    expires_at: Number(invoice.creation_date) + Number(invoice.expiry),
    ...(settled && { settled_at: Number(invoice.settle_date), preimage: hexOf(invoice.r_preimage) }),
  };
}

/** A payment of lnd's as NIP-47 tells it. */
function outgoing(payment) {
  const state = { SUCCEEDED: "settled", FAILED: "failed" }[payment.status] ?? "pending";
  const at = Math.floor(Number(payment.creation_time_ns) / 1e9);
  return {
    type: "outgoing",
    state,
    invoice: payment.payment_request,
    payment_hash: payment.payment_hash,
    amount: Number(payment.value_msat),
    fees_paid: Number(payment.fee_msat),
    created_at: at,
    ...(state === "settled" && { settled_at: at, preimage: WITHHOLD_PREIMAGE ? "" : payment.payment_preimage }),
  };
}

async function lookup(hash) {
  try {
    return incoming(await lnd("GET", `/v1/invoice/${hash}`));
  } catch {
    // The first message is how it stands; the stream ends only with the payment.
    for await (const payment of stream(`/v2/router/track/${urlBase64Of(hash)}`)) return outgoing(payment);
  }
}

/** One page of invoices and payments, the newest first; as lnd lists them, which is in the order in which they were made. */
async function list({ type, from = 0, limit = 20, offset = 0, unpaid = false }) {
  const [{ invoices }, { payments }] = await Promise.all([
    lnd("GET", "/v1/invoices?num_max_invoices=10000"),
    lnd("GET", "/v1/payments?include_incomplete=true"),
  ]);
  const all = [...invoices.map(incoming), ...payments.map(outgoing)];
  const wanted = (one) => (!type || one.type === type) && one.created_at >= from && (unpaid || one.state === "settled");
  return all.filter(wanted).sort((a, b) => b.created_at - a.created_at).slice(offset, offset + limit);
}

/** Runs `work`; its failure becomes NIP-47's error `code`. */
async function answer(code, work) {
  try {
    return { result: await work(), error: undefined };
  } catch (error) {
    return { result: undefined, error: { code, message: error.message } };
  }
}

const handler = {
  getInfo: () =>
    answer("INTERNAL", async () => {
      const info = await lnd("GET", "/v1/getinfo");
      const { alias, color, identity_pubkey: pubkey, block_height, block_hash } = info;
      return { alias, color, pubkey, network: "regtest", block_height, block_hash, methods, notifications: ["payment_received"] };
    }),
  getBalance: () =>
    answer("INTERNAL", async () => ({ balance: Number((await lnd("GET", "/v1/balance/channels")).local_balance.msat) })),
  makeInvoice: ({ amount, description = "", expiry = 3600 }) =>
    answer("INTERNAL", async () => {
      const made = await lnd("POST", "/v1/invoices", { value_msat: `${amount}`, memo: description, expiry: `${expiry}` });
      return incoming(await lnd("GET", `/v1/invoice/${hexOf(made.r_hash)}`));
    }),
  lookupInvoice: ({ payment_hash, invoice }) =>
    answer("NOT_FOUND", async () => lookup(payment_hash ?? (await lnd("GET", `/v1/payreq/${invoice}`)).payment_hash)),
  listTransactions: (request) => answer("INTERNAL", async () => ({ transactions: await list(request) })),
  payInvoice: ({ invoice }) =>
    answer("PAYMENT_FAILED", async () => {
      const paid = await pay(invoice);
      return WITHHOLD_PREIMAGE ? { ...paid, preimage: "" } : paid;
    }),
};

/** NIP-47's notifications, in both encryptions, which Alby's service does not make by itself. */
async function tellPayments(service, keys) {
  for await (const invoice of stream("/v1/invoices/subscribe")) {
    if (invoice.state !== "SETTLED") continue;
    const content = JSON.stringify({ notification_type: "payment_received", notification: incoming(invoice) });
    for (const [kind, encryption] of [[23196, "nip04"], [23197, "nip44_v2"]]) {
      const event = { kind, created_at: Math.floor(Date.now() / 1000), tags: [["p", keys.clientPubkey]] };
      event.content = await service.encrypt(keys, content, encryption);
      await Promise.any(service.pool.publish([relayUrl], await service.signEvent(event, keys.walletSecret)));
    }
  }
}

await startRelay();
const clientPubkey = getPublicKey(Buffer.from(CLIENT_SECRET, "hex"));
const keys = new NWCWalletServiceKeyPair(WALLET_SECRET, clientPubkey);
const service = new NWCWalletService({ relayUrls: [relayUrl] });
await service.publishWalletServiceInfoEvent(WALLET_SECRET, methods, ["payment_received"]);
await service.subscribe(keys, handler);
const url = `nostr+walletconnect://${keys.walletPubkey}?relay=${encodeURIComponent(relayUrl)}&secret=${CLIENT_SECRET}`;
process.stdout.write(`${JSON.stringify({ url })}\n`);
await tellPayments(service, keys);
