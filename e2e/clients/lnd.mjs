// lnd's REST API, for scripts that pay or are paid. Environment: LND_URL; LND_MACAROON, hex; NODE_EXTRA_CA_CERTS, lnd's certificate.
const { LND_URL, LND_MACAROON } = process.env;

/** One call; the answer's JSON, of a streaming call its last line's `result`. */
export async function lnd(method, path, body) {
  const headers = { "grpc-metadata-macaroon": LND_MACAROON };
  const response = await fetch(`${LND_URL}${path}`, { method, headers, body: body && JSON.stringify(body) });
  const text = await response.text();
  if (!response.ok) throw Object.assign(new Error(`lnd: ${path}: ${text}`), { status: response.status });
  const last = JSON.parse(text.trim().split("\n").at(-1));
  return last.result ?? last;
}

/** Each message of a streaming call, as it comes. */
export async function* stream(path) {
  const response = await fetch(`${LND_URL}${path}`, { headers: { "grpc-metadata-macaroon": LND_MACAROON } });
  if (!response.ok) throw new Error(`lnd: ${path}: ${await response.text()}`);
  let text = "";
  for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (text + chunk).split("\n");
    text = lines.pop();
    for (const line of lines) yield JSON.parse(line).result;
  }
}

/** Pays; {preimage: hex, fees_paid: millisatoshi}, or throws with the reason. */
export async function pay(invoice) {
  const order = { payment_request: invoice, timeout_seconds: 30, fee_limit_sat: 100, no_inflight_updates: true };
  const payment = await lnd("POST", "/v2/router/send", order);
  if (payment.status !== "SUCCEEDED") throw new Error(`lnd could not pay: ${payment.failure_reason}`);
  return { preimage: payment.payment_preimage, fees_paid: Number(payment.fee_msat) };
}

export const hexOf = (base64) => Buffer.from(base64, "base64").toString("hex");
export const urlBase64Of = (hex) => Buffer.from(hex, "hex").toString("base64url");
