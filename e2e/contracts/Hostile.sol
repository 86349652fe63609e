// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.20;

// What a payer may put on a chain to be served for nothing, and the wallets and batches of honest ones.

contract Token {
    event Transfer(address indexed from, address indexed to, uint256 value);

    mapping(address => uint256) public balanceOf;
    string public constant name = "Hostile";
    string public constant version = "1";

    function symbol() external pure virtual returns (string memory) {
        return "HOST";
    }

    function decimals() external view virtual returns (uint8) {
        return 6;
    }

    function mint(address to, uint256 value) external {
        balanceOf[to] += value;
        emit Transfer(address(0), to, value);
    }

    function transfer(address to, uint256 value) external virtual returns (bool) {
        _move(msg.sender, to, value);
        return true;
    }

    function _move(address from, address to, uint256 value) internal {
        balanceOf[from] -= value;
        balanceOf[to] += value;
        emit Transfer(from, to, value);
    }
}

/// Says no by its return value alone, as tokens from before ERC-20 was settled do.
contract SilentToken is Token {
    function transfer(address, uint256) external pure override returns (bool) {
        return false;
    }
}

/// Keeps a tenth of each transfer and logs what arrived.
contract FeeToken is Token {
    function transfer(address to, uint256 value) external override returns (bool) {
        _move(msg.sender, to, value - value / 10);
        _move(msg.sender, address(this), value / 10);
        return true;
    }
}

/// Does not tell how many decimals it has.
contract NoDecimalsToken is Token {
    function decimals() external pure override returns (uint8) {
        revert("no decimals");
    }
}

/// Logs transfers that never were.
contract Liar {
    event Transfer(address indexed from, address indexed to, uint256 value);

    function lie(address from, address to, uint256 value) external {
        emit Transfer(from, to, value);
    }
}

interface Pullable {
    function transferFrom(address from, address to, uint256 value) external returns (bool);
}

/// Makes many transfers of its caller's in one transaction.
contract Batch {
    function pay(Pullable token, address to, uint256 value, uint256 times) external {
        for (uint256 i = 0; i < times; i++) {
            token.transferFrom(msg.sender, to, value);
        }
    }

    function payEach(Pullable token, address to, uint256[] calldata values) external {
        for (uint256 i = 0; i < values.length; i++) {
            token.transferFrom(msg.sender, to, values[i]);
        }
    }
}

/// A wallet that does what its owner says, and calls valid what its owner's key has signed (EIP-1271).
contract Wallet {
    bytes4 internal constant VALID = 0x1626ba7e;
    address public immutable owner;

    constructor(address owner_) {
        owner = owner_;
    }

    receive() external payable {}

    function execute(address to, uint256 value, bytes calldata data) external payable {
        require(msg.sender == owner, "not the owner");
        (bool done,) = to.call{value: value}(data);
        require(done, "the call failed");
    }

    function isValidSignature(bytes32 digest, bytes calldata signature) external view virtual returns (bytes4) {
        if (signature.length != 65) {
            return 0xffffffff;
        }
        address signer = ecrecover(digest, uint8(signature[64]), bytes32(signature[0:32]), bytes32(signature[32:64]));
        return signer == owner ? VALID : bytes4(0xffffffff);
    }
}

contract RevertingWallet is Wallet {
    constructor(address owner_) Wallet(owner_) {}

    function isValidSignature(bytes32, bytes calldata) external pure override returns (bytes4) {
        revert("no");
    }
}

/// Works for as long as it is given gas.
contract BurningWallet is Wallet {
    constructor(address owner_) Wallet(owner_) {}

    function isValidSignature(bytes32, bytes calldata) external pure override returns (bytes4) {
        uint256 n;
        while (true) {
            n++;
        }
        return bytes4(uint32(n));
    }
}

/// Says yes without an ABI's padding and length.
contract ShortWallet is Wallet {
    constructor(address owner_) Wallet(owner_) {}

    function isValidSignature(bytes32, bytes calldata) external pure override returns (bytes4) {
        assembly {
            mstore(0, 0x1626ba7e00000000000000000000000000000000000000000000000000000000)
            return(0, 4)
        }
    }
}

/// A price that a test sets, in the form of a Chainlink aggregator.
contract Aggregator {
    uint8 public constant decimals = 8;
    int256 public answer;
    uint256 public updatedAt;

    function set(int256 answer_, uint256 updatedAt_) external {
        answer = answer_;
        updatedAt = updatedAt_;
    }

    function latestRoundData() external view returns (uint80, int256, uint256, uint256, uint80) {
        return (1, answer, updatedAt, updatedAt, 1);
    }
}
