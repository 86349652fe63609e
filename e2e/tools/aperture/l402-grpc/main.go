// Aperture's gRPC client of L402, as its users (Loop, Pool) run it, and a service to call: both sides of a call through a gateway.
//
//	l402-grpc serve        a health service; prints {"port": N}, and for each call {"credentials": [names of metadata that could be spent]}
//	l402-grpc buy CALLS    calls the health service at TARGET; prints {"answers": [status..], "error": why it gave up}
//
// Environment of buy: TARGET, host:port, h2c; LND_GRPC, host:port; LND_CERT; LND_MACAROONS, a folder; STORE, a folder for the token.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/btcsuite/btcd/btcutil"
	"github.com/lightninglabs/aperture/l402"
	"github.com/lightninglabs/lndclient"
	"github.com/lightningnetwork/lnd/lnrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

const (
	callTimeout = 30 * time.Second
	maxCostSat  = 1000
	maxFeeSat   = 10
)

func main() {
	switch os.Args[1] {
	case "serve":
		must(serve())
	case "buy":
		calls, err := strconv.Atoi(os.Args[2])
		must(err)
		var outcome struct {
			Answers []string `json:"answers"`
			Error   string   `json:"error"`
		}
		if outcome.Answers, err = buy(calls); err != nil {
			outcome.Error = err.Error()
		}
		say(outcome)
	}
}

func serve() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(tellCredentials))
	healthpb.RegisterHealthServer(server, health.NewServer())
	say(map[string]int{"port": listener.Addr().(*net.TCPAddr).Port})
	return server.Serve(listener)
}

func tellCredentials(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	seen := []string{}
	for _, name := range []string{"authorization", "macaroon", "grpc-metadata-macaroon"} {
		if len(metadata.ValueFromIncomingContext(ctx, name)) > 0 {
			seen = append(seen, name)
		}
	}
	say(map[string][]string{"credentials": seen})
	return handler(ctx, request)
}

// buy makes calls until one fails. The interceptor pays when it is told to, and keeps the token.
func buy(calls int) (answers []string, err error) {
	lnd, err := lndclient.NewLndServices(&lndclient.LndServicesConfig{
		LndAddress:  os.Getenv("LND_GRPC"),
		Network:     lndclient.NetworkRegtest,
		MacaroonDir: os.Getenv("LND_MACAROONS"),
		TLSPath:     os.Getenv("LND_CERT"),
	})
	if err != nil {
		return nil, err
	}
	defer lnd.Close()
	store, err := l402.NewFileStore(os.Getenv("STORE"))
	if err != nil {
		return nil, err
	}
	lnd.Client = routed{lnd.Client, lnd.Router}
	interceptor := l402.NewInterceptor(&lnd.LndServices, store, callTimeout, maxCostSat, maxFeeSat, true)
	connection, err := grpc.NewClient(os.Getenv("TARGET"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(interceptor.UnaryInterceptor))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	for range calls {
		answer, err := healthpb.NewHealthClient(connection).Check(context.Background(), &healthpb.HealthCheckRequest{})
		if err != nil {
			return answers, err
		}
		answers = append(answers, answer.Status.String())
	}
	return answers, nil
}

// routed pays by the call that lnd 0.21 still has: this lndclient's own PayInvoice uses one that was removed, and waits for ever.
type routed struct {
	lndclient.LightningClient
	router lndclient.RouterClient
}

func (r routed) PayInvoice(ctx context.Context, invoice string, maxFee btcutil.Amount, _ *uint64) chan lndclient.PaymentResult {
	result := make(chan lndclient.PaymentResult, 1)
	go func() {
		result <- r.pay(ctx, lndclient.SendPaymentRequest{Invoice: invoice, MaxFee: maxFee, Timeout: callTimeout})
	}()
	return result
}

func (r routed) pay(ctx context.Context, request lndclient.SendPaymentRequest) lndclient.PaymentResult {
	states, errs, err := r.router.SendPayment(ctx, request)
	if err != nil {
		return lndclient.PaymentResult{Err: err}
	}
	for {
		select {
		case err := <-errs:
			return lndclient.PaymentResult{Err: err}
		case state := <-states:
			switch state.State {
			case lnrpc.Payment_SUCCEEDED:
				amount, fee := state.Value.ToSatoshis(), state.Fee.ToSatoshis()
				return lndclient.PaymentResult{Preimage: state.Preimage, PaidAmt: amount, PaidFee: fee}
			case lnrpc.Payment_FAILED:
				return lndclient.PaymentResult{Err: errors.New(state.FailureReason.String())}
			}
		}
	}
}

func say(value any) {
	must(json.NewEncoder(os.Stdout).Encode(value))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
