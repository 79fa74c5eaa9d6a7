// CoreDNS with the plugins that the cluster's Corefile names and no others:
// the stock binary links every cloud SDK and costs minutes to build.
package main

import (
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
)

func init() {
	// The order in which plugins handle a query.
	dnsserver.Directives = []string{"ready", "errors", "cache", "template", "kubernetes"}
}

func main() { coremain.Run() }
