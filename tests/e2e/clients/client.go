//go:build ignore

// Calls an app through its sidecar with Go's own HTTP client.  Run as `go run client.go PORT`.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"strings"
	"sync"
)

var root = "http://127.0.0.1:" + os.Args[len(os.Args)-1] + "/v1.0/invoke"
var base = root + "/mathService/method"

const numbers = `{ "arg1": 10, "arg2": 23}`

func call(request *http.Request) (int, http.Header, []byte, error) {
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, nil, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return answer.StatusCode, answer.Header, body, err
}

func post(url string, body io.Reader) (int, http.Header, []byte, error) {
	request, err := http.NewRequest("POST", url, body)
	if err != nil {
		return 0, nil, nil, err
	}
	return call(request)
}

func adds(url string) error {
	status, _, body, err := post(url, strings.NewReader(numbers))
	if err == nil && (status != 200 || string(body) != "33") {
		err = fmt.Errorf("got %d %s", status, body)
	}
	return err
}

func headers() error {
	request, _ := http.NewRequest("GET", base+"/told?x=1", nil)
	request.Header.Set("X-Asked", "yes")
	_, header, body, err := call(request)
	if err != nil {
		return err
	}
	var told struct {
		Path    string
		Headers map[string]string
	}
	if err := json.Unmarshal(body, &told); err != nil {
		return err
	}
	if told.Path != "/told?x=1" || told.Headers["x-asked"] != "yes" || header.Get("X-Answer") != "from the app" {
		return fmt.Errorf("got %s %v", body, header)
	}
	return nil
}

func unknown() error {
	for _, sent := range []string{numbers, strings.Repeat("x", 2<<20)} {
		status, header, body, err := post(root+"/nobody/method/add", strings.NewReader(sent))
		if err != nil {
			return err
		}
		if status != 500 || !bytes.Contains(body, []byte("id: nobody")) || header.Get("Tieline-Cause") != "name-unknown" {
			return fmt.Errorf("got %d %s %v", status, body, header)
		}
	}
	return nil
}

func echo(sent []byte, body io.Reader) error {
	_, _, got, err := post(base+"/echo", body)
	if err == nil && !bytes.Equal(sent, got) {
		err = fmt.Errorf("sent %d bytes, got %d", len(sent), len(got))
	}
	return err
}

func big() error {
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	if err := echo(body, bytes.NewReader(body)); err != nil {
		return err
	}
	return echo(body, io.MultiReader(bytes.NewReader(body))) // of unknown length: in chunks
}

func many() error {
	var group sync.WaitGroup
	errors := make(chan error, 100)
	for n := range 100 {
		group.Go(func() {
			body := []byte(fmt.Sprintf("call %d", n))
			errors <- echo(body, bytes.NewReader(body))
		})
	}
	group.Wait()
	close(errors)
	for err := range errors {
		if err != nil {
			return err
		}
	}
	return nil
}

func keeps() error {
	for n := range 20 {
		request, _ := http.NewRequest("GET", base+"/told", nil)
		reused := false
		trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused }}
		if _, _, _, err := call(request.WithContext(httptrace.WithClientTrace(request.Context(), trace))); err != nil {
			return err
		}
		if n > 0 && !reused {
			return fmt.Errorf("call %d opened a connection", n)
		}
	}
	return nil
}

func main() {
	checks := []struct {
		name string
		run  func() error
	}{
		{"adds two numbers", func() error { return adds(base + "/add") }},
		{"takes a nested path", func() error { return adds(base + "/api/v1/add") }},
		{"carries headers both ways", headers},
		{"explains an unknown app", unknown},
		{"echoes 2 MiB", big},
		{"makes many calls at once", many},
		{"keeps its connection", keeps},
	}
	code := 0
	for _, check := range checks {
		if err := check.run(); err != nil {
			fmt.Fprintf(os.Stderr, "failed: %s: %v\n", check.name, err)
			code = 1
			continue
		}
		fmt.Println("ok " + check.name)
	}
	os.Exit(code)
}
