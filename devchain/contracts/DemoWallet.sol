// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// The smallest contract wallet: it holds tokens and calls valid what its owner's key has signed (EIP-1271).
/// For tests: no replay protection between wallets of one owner, no way to move anything but by EIP-3009.
contract DemoWallet {
    bytes4 private constant VALID = 0x1626ba7e;
    uint256 private constant S_MAX = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;

    address public owner;

    constructor(address owner_) {
        owner = owner_;
    }

    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        if (signature.length != 65 || uint256(bytes32(signature[32:64])) > S_MAX) {
            return 0xffffffff;
        }
        address signer =
            ecrecover(digest, uint8(signature[64]), bytes32(signature[0:32]), bytes32(signature[32:64]));
        return signer != address(0) && signer == owner ? VALID : bytes4(0xffffffff);
    }
}
