// Pays with the official @x402/fetch (protocol version 2).
import { ExactEvmScheme } from "@x402/evm";
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { privateKeyToAccount } from "viem/accounts";
import { fromFetch, init, job, report } from "./job.mjs";

const client = new x402Client().register("eip155:*", new ExactEvmScheme(privateKeyToAccount(job.key)));
const pay = wrapFetchWithPayment(fetch, client);
await report(async () => fromFetch(await pay(job.url, init)), decodePaymentResponseHeader);
