// Reads messages as servers in Go do, and prints what it read: encoding/json
// into a struct, which ignores the case of names, or into `any`. Built with
// GOEXPERIMENT=jsonv2 both are made of the new implementation, and the new
// package is there too (v2.go).
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"
)

type field struct {
	set   bool
	value any
}

func (f *field) UnmarshalJSON(text []byte) error {
	f.set = true
	return json.Unmarshal(text, &f.value)
}

type message struct {
	ID     field `json:"id"`
	Method field `json:"method"`
	Params struct {
		Name      field `json:"name"`
		URI       field `json:"uri"`
		Arguments field `json:"arguments"`
		Meta      field `json:"_meta"`
	} `json:"params"`
	Result field `json:"result"`
	Error  field `json:"error"`
}

func (m *message) print() string {
	fields := []field{m.ID, m.Method, m.Result, m.Error, m.Params.Name, m.Params.URI, m.Params.Arguments, m.Params.Meta}
	printed := make([]string, 0, len(fields))
	for _, field := range fields {
		if field.set {
			printed = append(printed, canonical(field.value))
		} else {
			printed = append(printed, "~")
		}
	}
	return strings.Join(printed, "\t")
}

func member(of any, name string) field {
	object, _ := of.(map[string]any)
	value, set := object[name]
	return field{set, value}
}

func fromAny(whole any) string {
	var m message
	m.ID, m.Method = member(whole, "id"), member(whole, "method")
	m.Result, m.Error = member(whole, "result"), member(whole, "error")
	params := member(whole, "params").value
	m.Params.Name, m.Params.URI = member(params, "name"), member(params, "uri")
	m.Params.Arguments, m.Params.Meta = member(params, "arguments"), member(params, "_meta")
	return m.print() + "\t" + canonical(whole)
}

func canonical(value any) string {
	switch value := value.(type) {
	case nil:
		return "null"
	case bool:
		return fmt.Sprint(value)
	case float64:
		return fmt.Sprintf("#%016x", math.Float64bits(value))
	case string:
		return text(value)
	case []any:
		items := make([]string, 0, len(value))
		for _, item := range value {
			items = append(items, canonical(item))
		}
		return "[" + strings.Join(items, ",") + "]"
	case map[string]any:
		members := make(map[string]string, len(value))
		for name, member := range value {
			members[text(name)] = canonical(member)
		}
		items := make([]string, 0, len(value))
		for _, name := range slices.Sorted(maps.Keys(members)) {
			items = append(items, name+":"+members[name])
		}
		return "{" + strings.Join(items, ",") + "}"
	}
	panic(fmt.Sprintf("%T", value))
}

func text(value string) string {
	var hex strings.Builder
	hex.WriteByte('"')
	for _, unit := range utf16.Encode([]rune(value)) {
		fmt.Fprintf(&hex, "%04x", unit)
	}
	return hex.String()
}

var readers = map[string]func([]byte) (string, error){
	"struct": func(body []byte) (string, error) {
		var m message
		err := json.Unmarshal(body, &m)
		return m.print() + "\t*", err
	},
	"any": func(body []byte) (string, error) {
		var whole any
		err := json.Unmarshal(body, &whole)
		return fromAny(whole), err
	},
}

// Each character and the next one that differs from it only by case.
func folds(out io.Writer) {
	for c := rune(0); c <= unicode.MaxRune; c++ {
		if next := unicode.SimpleFold(c); next != c {
			fmt.Fprintf(out, "%x %x\n", string(c), string(next))
		}
	}
}

func main() {
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	defer out.Flush()
	if os.Args[1] == "folds" {
		folds(out)
		return
	}
	read := readers[os.Args[1]]
	for {
		var length uint32
		if err := binary.Read(in, binary.BigEndian, &length); err == io.EOF {
			return
		} else if err != nil {
			panic(err)
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(in, body); err != nil {
			panic(err)
		}
		line, err := read(body)
		if err != nil {
			line = "refused"
		}
		fmt.Fprintln(out, line)
	}
}
