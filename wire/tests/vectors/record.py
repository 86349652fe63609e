"""Feeds ours.json to the official Python package and records what it sends: python record.py.

Packages: x402[evm,httpx] 2.25.0.
"""

import json
import pathlib

from eth_account import Account
from x402 import x402ClientSync
from x402.http import utils
from x402.http.x402_http_client import x402HTTPClientSync
from x402.mechanisms.evm.exact import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentRequired, SettleResponse

HERE = pathlib.Path(__file__).parent
OURS = json.loads((HERE / "ours.json").read_text())
# The first key of every development chain.
KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"

client = x402ClientSync()
register_exact_evm_client(client, EthAccountSigner(Account.from_key(KEY)))
http = x402HTTPClientSync(client)


def pay(headers, body):
    paid, _payload = http.handle_402_response(headers, body, "https://api.example.com/v1/answer?q=1&lang=en")
    return {name.lower(): value for name, value in paid.items()}


body = json.dumps(OURS["body"]).encode()
v2 = pay({"PAYMENT-REQUIRED": OURS["payment_required"]}, body)
v1 = pay({}, body)

# What we write must pass its decoders.
bill = utils.decode_payment_required_header(OURS["payment_required"])
assert bill.x402_version == 2 and len(bill.accepts) == 2
assert utils.decode_payment_signature_header(OURS["payment_signature"]).accepted == bill.accepts[0]
assert utils.decode_payment_signature_header(OURS["x_payment"]).x402_version == 1
settled = utils.decode_payment_response_header(OURS["payment_response"])
assert settled.success
assert utils.decode_payment_response_header(OURS["x_payment_response"]).network == "base-sepolia"

one = PaymentRequired(resource=bill.resource, accepts=bill.accepts[:1], error=bill.error)
refused = SettleResponse(
    success=False,
    error_reason="invalid_exact_evm_insufficient_balance",
    payer=settled.payer,
    transaction="",
    network=settled.network,
)
recorded = {
    "v2": {"header": v2["payment-signature"]},
    "v1": {"header": v1["x-payment"]},
    "payment_required": utils.encode_payment_required_header(one),
    "payment_response": utils.encode_payment_response_header(settled),
    "payment_response_refused": utils.encode_payment_response_header(refused),
}
(HERE / "pypi.json").write_text(json.dumps(recorded, indent=2) + "\n")
