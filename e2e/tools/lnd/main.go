// lnd as its own command starts it, but for one thing: keys of a wallet are derived with the quick parameters that lnd's integration
// tests use. With the real ones a start takes three seconds of CPU time, and these wallets hold coins of regtest under no password.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/btcsuite/btcwallet/waddrmgr"
	"github.com/jessevdk/go-flags"
	"github.com/lightningnetwork/lnd"
	"github.com/lightningnetwork/lnd/signal"
)

func main() {
	waddrmgr.DefaultScryptOptions = waddrmgr.FastScryptOptions
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	interceptor, err := signal.Intercept()
	if err != nil {
		return err
	}
	config, err := lnd.LoadConfig(interceptor)
	if help := (*flags.Error)(nil); errors.As(err, &help) && help.Type == flags.ErrHelp {
		return nil
	}
	if err != nil {
		return err
	}
	return lnd.Main(config, lnd.ListenerCfg{}, config.ImplementationConfig(interceptor), interceptor)
}
