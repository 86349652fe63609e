// Compiles the contract file named on the command line with npm's solc; prints {contract: creation code in hex}.
import { readFileSync } from "node:fs";
import solc from "solc";

const [path] = process.argv.slice(2);
const input = {
  language: "Solidity",
  sources: { contracts: { content: readFileSync(path, "utf8") } },
  settings: {
    evmVersion: "paris",
    optimizer: { enabled: true, runs: 200 },
    outputSelection: { "*": { "*": ["evm.bytecode.object"] } },
  },
};
const output = JSON.parse(solc.compile(JSON.stringify(input)));
const errors = (output.errors ?? []).filter(({ severity }) => severity === "error");
if (errors.length > 0) {
  throw new Error(errors.map(({ formattedMessage }) => formattedMessage).join("\n"));
}
const codes = Object.entries(output.contracts.contracts).map(([name, { evm }]) => [name, evm.bytecode.object]);
process.stdout.write(JSON.stringify(Object.fromEntries(codes)));
