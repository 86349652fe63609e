"""Buys with a client of L402 from PyPI: `l402-requests`, `l402kit` or `pyl402`, whichever the argument names.

Job on stdin: {requests: [{url, method, headers, body?}]}, made one after the other by one client. Outcome on stdout: {answers: [{status,
headers, body} or {error}], paid: [BOLT 11 of each invoice that the wallet was told to pay]}. The wallet is lnd, or for l402-requests what
is behind NWC_URL. Environment: LND_URL; LND_MACAROON, hex; LND_CERT, a file; NWC_URL, if any.
"""

import json
import os
import ssl
import sys

import httpx

URL, MACAROON, CERT = (os.environ[name] for name in ("LND_URL", "LND_MACAROON", "LND_CERT"))
NWC_URL = os.environ.get("NWC_URL")
paid: list[str] = []


def pay(invoice: str) -> str:
    """The preimage in hex."""
    order = {"payment_request": invoice, "timeout_seconds": 30, "fee_limit_sat": 100, "no_inflight_updates": True}
    headers = {"grpc-metadata-macaroon": MACAROON}
    verify = ssl.create_default_context(cafile=CERT)
    response = httpx.post(f"{URL}/v2/router/send", json=order, headers=headers, verify=verify, timeout=60)
    payment = json.loads(response.text.strip().splitlines()[-1])["result"]
    if payment["status"] != "SUCCEEDED":
        raise RuntimeError(f"lnd could not pay: {payment['failure_reason']}")
    return payment["payment_preimage"]


def l402_requests_client():
    """With its own wallet over Nostr Wallet Connect where there is one. Its own wallet for lnd takes lnd's hex for base64, so that what
    it presents as a preimage is none (0.9.0): this is the interface it gives for others."""
    from l402_requests import L402Client, NwcWallet, WalletBase

    class LndWallet(WalletBase):
        async def pay_invoice(self, bolt11: str) -> str:
            return pay(bolt11)

    wallet = NwcWallet(NWC_URL) if NWC_URL else LndWallet()
    to_pay = wallet.pay_invoice

    async def counted(bolt11: str) -> str:
        paid.append(bolt11)
        return await to_pay(bolt11)

    wallet.pay_invoice = counted
    client = L402Client(wallet=wallet)
    return lambda method, url, headers, body: client.request(method, url, headers=headers, content=body)


def l402kit_client():
    """Its own wallets are services on the internet; this is the interface it gives for others. It knows GET and POST."""
    from l402kit.client import L402Client, L402Wallet

    class Wallet(L402Wallet):
        def pay_invoice(self, bolt11: str) -> str:
            paid.append(bolt11)
            return pay(bolt11)

    client = L402Client(wallet=Wallet(), budget_sats=10_000)
    return lambda method, url, headers, body: getattr(client, method.lower())(
        url, headers=headers, **({"content": body} if body else {})
    )


def pyl402_client():
    """Its own wallet is a service on the internet; this is the interface it gives for others."""
    from pyl402.client.l402 import L402Client
    from pyl402.token_store.token_store import MemoryTokenStore
    from pyl402.wallet import PaymentResult, Wallet

    class LndWallet(Wallet):
        def pay_invoice(self, invoice: str) -> PaymentResult:
            paid.append(invoice)
            return PaymentResult(preimage=pay(invoice), success=True)

    client = L402Client(wallet=LndWallet(), store=MemoryTokenStore(), timeout=30)
    return lambda method, url, headers, body: client.request(method, url, headers=headers, content=body)


def main() -> None:
    clients = {"l402-requests": l402_requests_client, "l402kit": l402kit_client, "pyl402": pyl402_client}
    request = clients[sys.argv[1]]()
    answers = []
    for wanted in json.load(sys.stdin)["requests"]:
        try:
            response = request(wanted["method"], wanted["url"], wanted["headers"], wanted.get("body"))
            headers = {name.lower(): value for name, value in response.headers.items()}
            answers.append({"status": response.status_code, "headers": headers, "body": response.text})
        except Exception as error:  # whatever the client gives up with is its outcome
            answers.append({"error": f"{type(error).__name__}: {error}"})
    print(json.dumps({"answers": answers, "paid": paid}))


main()
