// Pays with the official @x402/axios (protocol version 2).
import { decodePaymentResponseHeader, wrapAxiosWithPayment, x402Client } from "@x402/axios";
import { ExactEvmScheme } from "@x402/evm";
import axios from "axios";
import { privateKeyToAccount } from "viem/accounts";
import { job, report } from "./job.mjs";

const client = new x402Client().register("eip155:*", new ExactEvmScheme(privateKeyToAccount(job.key)));
// The answer is wanted as text, and a refusal as an answer: but the interceptor only sees a 402 that axios rejects.
const api = wrapAxiosWithPayment(axios.create({ transformResponse: (text) => text }), client);
const request = { url: job.url, method: job.method, headers: job.headers, data: job.body };
const answered = (error) => (error.response ? error.response : Promise.reject(error));
await report(async () => {
  const response = await api.request(request).catch(answered);
  return { status: response.status, headers: { ...response.headers }, body: response.data };
}, decodePaymentResponseHeader);
