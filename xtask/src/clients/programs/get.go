// Asks for a page as Go programs do.
package main

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	if _, err := http.Get("https://" + os.Args[1] + "/"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
