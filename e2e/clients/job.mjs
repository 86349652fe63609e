// What every client script shares: the job comes as JSON on stdin, the outcome goes as one JSON line to stdout.
// Job: {url, method, headers, body?: string, key}. Outcome: {status, headers, body: string, paymentResponse: object | null}, or
// {error: string} when the client itself gave up.
import { readFileSync } from "node:fs";

export const job = JSON.parse(readFileSync(0, "utf8"));

/** The request init that fetch-like clients take. */
export const init = { method: job.method, headers: job.headers, body: job.body };

/**
 * Runs `pay`, which returns {status, headers: object with lower-case names, body: string}, and prints the outcome.
 * @param decode decodes a PAYMENT-RESPONSE header of the client's own protocol version
 */
export async function report(pay, decode) {
  let outcome;
  try {
    const answer = await pay();
    const header = answer.headers["payment-response"] ?? answer.headers["x-payment-response"];
    outcome = { ...answer, paymentResponse: header === undefined ? null : decode(header) };
  } catch (error) {
    outcome = { error: [error.message, error.cause?.code ?? error.cause?.message].filter(Boolean).join(": ") };
  }
  process.stdout.write(`${JSON.stringify(outcome)}\n`);
}

/** A fetch Response as `report` wants it. */
export async function fromFetch(response) {
  return { status: response.status, headers: Object.fromEntries(response.headers), body: await response.text() };
}
