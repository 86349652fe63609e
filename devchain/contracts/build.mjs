// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Compiles each contract of this folder into NAME.json: its ABI, creation code and runtime code.
//
//   npm ci && node build.mjs           writes the files
//   npm ci && node build.mjs --check   writes nothing; fails, naming the file, if one differs from what is committed
//
// Verified so: solc is pinned in package.json and package-lock.json (with its integrity hash), the settings below leave
// no metadata hash in the code, and `--check` compares the whole file byte for byte.
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import solc from "solc";

const CONTRACTS = ["DemoUSD", "DemoWallet"];
const check = process.argv.includes("--check");
const here = (name) => fileURLToPath(new URL(name, import.meta.url));

const input = {
  language: "Solidity",
  sources: Object.fromEntries(CONTRACTS.map((name) => [`${name}.sol`, { content: readFileSync(here(`${name}.sol`), "utf8") }])),
  settings: {
    optimizer: { enabled: true, runs: 10000 },
    // Older than every chain it may run on, so that no opcode is missing there.
    evmVersion: "paris",
    metadata: { appendCBOR: false, bytecodeHash: "none" },
    outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } },
  },
};
const output = JSON.parse(solc.compile(JSON.stringify(input)));
const problems = output.errors ?? [];
for (const problem of problems) console.error(problem.formattedMessage);
if (problems.length > 0) process.exit(1);

let stale = false;
for (const name of CONTRACTS) {
  const { abi, evm } = output.contracts[`${name}.sol`][name];
  const artifact = {
    contract: name,
    compiler: solc.version(),
    evmVersion: input.settings.evmVersion,
    optimizerRuns: input.settings.optimizer.runs,
    abi,
    bytecode: `0x${evm.bytecode.object}`,
    deployedBytecode: `0x${evm.deployedBytecode.object}`,
  };
  const text = `${JSON.stringify(artifact, null, 1)}\n`;
  const file = here(`${name}.json`);
  if (!check) writeFileSync(file, text);
  else if (readFileSync(file, "utf8") !== text) {
    console.error(`${name}.json differs from what ${name}.sol compiles to; run node build.mjs`);
    stale = true;
  }
}
process.exit(stale ? 1 : 0);
