// An MCP server on Go's net/http: it writes each request that it sees as one
// line of JSON.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
)

var lock sync.Mutex

func say(line any) {
	lock.Lock()
	defer lock.Unlock()
	json.NewEncoder(os.Stdout).Encode(line)
}

type message struct {
	ID     *json.RawMessage `json:"id"`
	Method string           `json:"method"`
	Params struct {
		Name string `json:"name"`
	} `json:"params"`
}

func answerTo(method string, body []byte) (int, any) {
	var got message
	switch {
	case method != http.MethodPost:
		return http.StatusMethodNotAllowed, nil
	case json.Unmarshal(body, &got) != nil:
		return http.StatusBadRequest, nil
	case got.ID == nil:
		return http.StatusAccepted, nil
	}
	var result any = map[string]any{"content": []any{map[string]any{"type": "text", "text": got.Params.Name}}}
	switch got.Method {
	case "initialize":
		result = map[string]any{"protocolVersion": "2025-11-25", "capabilities": map[string]any{"tools": map[string]any{}}, "serverInfo": map[string]any{"name": "go", "version": "1"}}
	case "tools/list":
		result = map[string]any{"tools": []any{}}
	}
	return http.StatusOK, map[string]any{"jsonrpc": "2.0", "id": got.ID, "result": result}
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	say(map[string]any{"listening": listener.Addr().(*net.TCPAddr).Port})
	http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		say(map[string]any{"method": r.Method, "target": r.RequestURI, "agent": r.UserAgent(), "body": string(body)})
		status, answer := answerTo(r.Method, body)
		w.Header().Set("content-type", "application/json")
		w.WriteHeader(status)
		if answer != nil {
			json.NewEncoder(w).Encode(answer)
		}
	}))
}
