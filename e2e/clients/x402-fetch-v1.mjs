// Pays with the deprecated x402-fetch (protocol version 1), as agents in the field still do.
import { baseSepolia } from "viem/chains";
import { createWalletClient, http } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { decodeXPaymentResponse, wrapFetchWithPayment } from "x402-fetch";
import { fromFetch, init, job, report } from "./job.mjs";

// The wallet signs and asks no node; port 1 makes sure of it.
const transport = http("http://127.0.0.1:1");
const wallet = createWalletClient({ account: privateKeyToAccount(job.key), chain: baseSepolia, transport });
const pay = wrapFetchWithPayment(fetch, wallet);
await report(async () => fromFetch(await pay(job.url, init)), decodeXPaymentResponse);
