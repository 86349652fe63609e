#!/usr/bin/env bash
# Pays for a GET by an ordinary transfer, with cast (foundry), curl and jq: RPC_URL=… ETH_PRIVATE_KEY=… MAX_UNITS=10000 pay-by-transfer.sh URL
# ASSET (a token's address, or native) picks among the bill's options. What was signed is kept in STATE: run it again after a failure,
# and it sends and claims that one transaction and never a second.
set -euo pipefail
url=$1 state=${STATE:-.paid-$(printf %s "$1" | sha256sum | cut -c1-16)} chain=$(cast chain-id --rpc-url "$RPC_URL")
payer=$(cast wallet address --private-key "$ETH_PRIVATE_KEY")
exec 9>"$state.lock" && flock -n 9 || { echo "another run is at work" >&2; exit 1; }
if [ ! -s "$state" ]; then
  answer=$(curl -sS -w '\n%{http_code}' "$url") body=${answer%$'\n'*}
  [ "${answer##*$'\n'}" = 402 ] || { printf '%s\n' "$body"; exit; }
  option=$(jq -ce --arg chain "eip155:$chain" --arg asset "${ASSET-}" --arg payer "$payer" --arg url "$url" '.transfer
    | select(.resource == $url and .method == "GET" and (.payBy | fromdate) > now + 60) as $bill | $bill.options[]
    | select(.network == $chain and ($asset == "" or (.asset | ascii_downcase) == ($asset | ascii_downcase))
      and (.payTo | ascii_downcase) != ($payer | ascii_downcase)) | $bill + . + {payer: $payer} | del(.options, .claim)' <<<"$body" | head -n 1) || true
  read -r asset to amount < <(jq -r '"\(.asset) \(.payTo) \(.amount)"' <<<"${option:?the bill has no such way to pay}")
  [[ $amount =~ ^[1-9][0-9]{0,17}$ && $amount -le $MAX_UNITS ]] || { echo "$amount units are too many" >&2; exit 1; }
  [ "$asset" = native ] && call=("$to" --value "$amount") || call=("$asset" 'transfer(address,uint256)' "$to" "$amount")
  raw=$(cast mktx --private-key "$ETH_PRIVATE_KEY" --rpc-url "$RPC_URL" "${call[@]}") # signed, and kept before it is sent
  jq -c --arg raw "$raw" --arg hash "$(cast keccak "$raw")" '. + {raw: $raw, transaction: $hash}' <<<"$option" >"$state.new"
  sync "$state.new" && mv "$state.new" "$state" && sync .
fi
hash=$(jq -r .transaction "$state") need=$(jq -r '.confirmations | numbers // 1' "$state") # "safe" and "finalized": the seller says when
jq -e '(.payBy | fromdate) > now' "$state" >/dev/null && # too late it would be credit; the chain may have it already
  cast publish --async --rpc-url "$RPC_URL" "$(jq -r .raw "$state")" >/dev/null 2>&1 || true
[[ $(timeout 1200 cast receipt --rpc-url "$RPC_URL" --confirmations "$need" "$hash" status) =~ ^(1|true) ]] || { echo "$hash failed" >&2; exit 1; }
for _ in {1..100}; do
  code=$(jq -c --argjson until $(($(date +%s) + 600)) '{version: 1, expiresAt: $until, quote, network, asset, transaction, payer, payTo, amount,
    resource, method}' "$state")
  data=$(jq -c --argjson chain "$chain" 'def fields: map(split(" ") | {type: .[0], name: .[1]}); {primaryType: "PaymentCode",
    domain: {name: "Farebox Payment Code", version: "1", chainId: $chain}, types: {EIP712Domain: (["string name", "string version",
    "uint256 chainId"] | fields), PaymentCode: (["string quote", "string method", "string resource", "bytes32 transaction", "address asset",
    "address payer", "address payTo", "uint256 amount", "uint256 expiresAt"] | fields)}, message: (. + {expiresAt: "\(.expiresAt)",
    asset: (if .asset == "native" then "0xEeeeeEeeeEeEeeEeEeEeeEEEeeeeEeeeeeeeEEeE" else .asset end)})}' <<<"$code")
  code=$(jq -cj --arg by "$(cast wallet sign --private-key "$ETH_PRIVATE_KEY" --data "$data")" '. + {signature: $by}' <<<"$code")
  answer=$(curl -sS -w '\n%{http_code}' -H "X-Payment-Hash: $hash" \
    -H "X-Payment-Code: $(base64 -w0 <<<"$code" | tr '+/' '-_' | tr -d =)" "$url") body=${answer%$'\n'*}
  if [[ ${answer##*$'\n'} == 2* ]]; then printf '%s\n' "$body"; mv "$state" "$state.done"; exit; fi
  jq -e '.retry == "same_proof"' <<<"$body" >/dev/null 2>&1 || break # not seen yet, or it could not tell: the same again
  sleep 2
done
printf 'not served for %s: %s\n' "$hash" "$body" >&2 && exit 1
