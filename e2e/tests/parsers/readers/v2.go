//go:build goexperiment.jsonv2

package main

import json2 "encoding/json/v2"

func init() {
	readers["v2-struct"] = func(body []byte) (string, error) {
		var m message
		err := json2.Unmarshal(body, &m)
		return m.print() + "\t*", err
	}
	readers["v2-any"] = func(body []byte) (string, error) {
		var whole any
		err := json2.Unmarshal(body, &whole)
		return fromAny(whole), err
	}
}
