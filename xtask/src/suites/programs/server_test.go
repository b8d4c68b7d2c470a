// What a project's own tests do: a server on a port of the kernel's choice, and requests to it.
package server

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestServer(t *testing.T) {
	answer := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "reached") }
	for _, start := range []func(http.Handler) *httptest.Server{httptest.NewServer, httptest.NewTLSServer} {
		server := start(http.HandlerFunc(answer))
		for times := 0; times < 20; times++ {
			response, err := server.Client().Get(server.URL + "/left")
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(response.Body)
			if err != nil || string(body) != "reached" {
				t.Fatal(string(body), err)
			}
		}
		server.Close()
	}
}
