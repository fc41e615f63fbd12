// Calls an app by gRPC with Dapr's SDK for Go, or is one.  Run as `sdk client` and `sdk stop`, with the sidecar's port in
// DAPR_GRPC_PORT, or as `sdk app PORT`.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"sync"
	"time"

	dapr "github.com/dapr/go-sdk/client"
	"github.com/dapr/go-sdk/service/common"
	daprd "github.com/dapr/go-sdk/service/grpc"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const app = "mathService"

var numbers = &dapr.DataContent{ContentType: "application/json", Data: []byte(`{"arg1": 10, "arg2": 23}`)}

func equal(got, wanted any) {
	if !reflect.DeepEqual(got, wanted) {
		panic(fmt.Sprintf("got %v, wanted %v", got, wanted))
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func failure(client dapr.Client, id, method string) *status.Status {
	_, err := client.InvokeMethodWithContent(context.Background(), id, method, "post", numbers)
	told, ok := status.FromError(err)
	if err == nil || !ok {
		panic(fmt.Sprintf("no status: %v", err))
	}
	return told
}

func checks(client dapr.Client) {
	ctx := context.Background()
	check("waits for the sidecar", func() {
		equal(client.Wait(ctx, 15*time.Second), nil)
	})
	check("adds two numbers", func() {
		for _, method := range []string{"add", "api/v1/add"} {
			equal(string(must(client.InvokeMethodWithContent(ctx, app, method, "post", numbers))), "33")
		}
	})
	check("carries metadata and a query", func() {
		// It drops metadata of the context where it has a token to send.
		content := &dapr.DataContent{ContentType: "text/plain", Data: []byte("abc")}
		answer := must(client.InvokeMethodWithContent(ctx, app, "told?x=1", "put", content))
		var told struct {
			Method, Query, ContentType string
			Verb, Length               int
			Metadata                   map[string]string
		}
		equal(json.Unmarshal(answer, &told), nil)
		equal([]any{told.Method, told.Query, told.ContentType, told.Verb, told.Length}, []any{"told", "x=1", "text/plain", 4, 3})
		equal(told.Metadata["dapr-caller-app-id"], "caller")
		equal(told.Metadata["dapr-callee-app-id"], app)
	})
	check("tells the app's errors", func() {
		told := failure(client, app, "broken")
		equal(told.Code(), codes.FailedPrecondition)
		equal(strings.HasSuffix(told.Message(), "none left"), true)
		info := told.Details()[0].(*errdetails.ErrorInfo)
		equal([]string{info.Reason, info.Domain}, []string{"OUT_OF_STOCK", "shop"})
	})
	check("explains an unknown app", func() {
		told := failure(client, "nobody", "add")
		equal(told.Code(), codes.Internal)
		equal(strings.Contains(told.Message(), "failed to invoke, id: nobody, err: "), true)
	})
	check("echoes 2 MiB", func() {
		body := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
		got := must(client.InvokeMethodWithContent(ctx, app, "echo", "post", &dapr.DataContent{Data: body}))
		equal(bytes.Equal(got, body), true)
	})
	check("makes many calls at once", func() {
		var all sync.WaitGroup
		got := make([]string, 50)
		for n := range got {
			all.Add(1)
			go func() {
				defer all.Done()
				content := &dapr.DataContent{Data: []byte(fmt.Sprint(n))}
				answer, err := client.InvokeMethodWithContent(ctx, app, "echo", "post", content)
				got[n] = fmt.Sprint(string(answer), err)
			}()
		}
		all.Wait()
		for n, one := range got {
			equal(one, fmt.Sprint(n, "<nil>"))
		}
	})
	check("reads and sets metadata", func() {
		equal(must(client.GetMetadata(ctx)).ID, "caller")
		equal(client.SetMetadata(ctx, "colour", "gr\u00fcn"), nil)
		equal(must(client.GetMetadata(ctx)).ExtendedMetadata["colour"], "gr\u00fcn")
	})
	check("needs its token", func() {
		client.WithAuthToken("wrong")
		equal(failure(client, app, "add").Code(), codes.Unauthenticated)
	})
}

var failed bool

func check(name string, run func()) {
	defer func() {
		if reason := recover(); reason != nil {
			fmt.Fprintf(os.Stderr, "failed: %s: %v\n", name, reason)
			failed = true
		}
	}()
	run()
	fmt.Println("ok", name)
}

func serve(port string) {
	service := must(daprd.NewService("127.0.0.1:" + port))
	add := func(_ context.Context, in *common.InvocationEvent) (*common.Content, error) {
		var given struct{ Arg1, Arg2 int }
		if err := json.Unmarshal(in.Data, &given); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		return &common.Content{ContentType: "application/json", Data: []byte(fmt.Sprint(given.Arg1 + given.Arg2))}, nil
	}
	echo := func(ctx context.Context, in *common.InvocationEvent) (*common.Content, error) {
		return &common.Content{ContentType: in.ContentType, Data: in.Data}, nil
	}
	for name, handler := range map[string]common.ServiceInvocationHandler{"add": add, "echo": echo} {
		if err := service.AddServiceInvocationHandler(name, handler); err != nil {
			panic(err)
		}
	}
	if err := service.AddHealthCheckHandler("", func(context.Context) error { return nil }); err != nil {
		panic(err)
	}
	fmt.Println("started")
	if err := service.Start(); err != nil {
		panic(err)
	}
}

func main() {
	if os.Args[1] == "app" {
		serve(os.Args[2])
		return
	}
	client := must(dapr.NewClient())
	if os.Args[1] == "stop" {
		check("stops the sidecar", func() { equal(client.Shutdown(context.Background()), nil) })
	} else {
		checks(client)
	}
	client.Close()
	if failed {
		os.Exit(1)
	}
}
