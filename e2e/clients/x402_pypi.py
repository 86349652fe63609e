"""Pays with the official x402 package from PyPI: over `requests` or `httpx`, whichever the argument names.

Job and outcome are as in job.mjs.
"""

import asyncio
import json
import sys

import httpx
import requests
from eth_account import Account
from x402 import x402Client, x402ClientSync
from x402.http.clients import wrapHttpxWithPayment, wrapRequestsWithPayment
from x402.http.utils import decode_payment_response_header
from x402.mechanisms.evm import EthAccountSigner
from x402.mechanisms.evm.exact.register import register_exact_evm_client


def over_requests(job: dict) -> requests.Response:
    client = register_exact_evm_client(x402ClientSync(), signer(job))
    session = wrapRequestsWithPayment(requests.Session(), client)
    return session.request(job["method"], job["url"], headers=job["headers"], data=job.get("body"))


async def over_httpx(job: dict) -> httpx.Response:
    client = register_exact_evm_client(x402Client(), signer(job))
    async with wrapHttpxWithPayment(client) as session:
        return await session.request(job["method"], job["url"], headers=job["headers"], content=job.get("body"))


def signer(job: dict) -> EthAccountSigner:
    return EthAccountSigner(Account.from_key(job["key"]))


def outcome(response: requests.Response | httpx.Response) -> dict:
    headers = {name.lower(): value for name, value in response.headers.items()}
    receipt = headers.get("payment-response")
    return {
        "status": response.status_code,
        "headers": headers,
        "body": response.text,
        "paymentResponse": receipt and decode_payment_response_header(receipt).model_dump(by_alias=True),
    }


def main() -> None:
    job = json.load(sys.stdin)
    try:
        response = over_requests(job) if sys.argv[1] == "requests" else asyncio.run(over_httpx(job))
        print(json.dumps(outcome(response)))
    except Exception as error:  # whatever the client gives up with is its outcome
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))


main()
