// The HTTP server of the trials about Go programs: net/http as it is, so that the listener is the one Go chooses.
//
//	http-server ADDRESS
//
// GET /peer says who the client is, which address it used, and whether the connection uses MPTCP; POST /echo sends the
// body back.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
)

// The context key of a request's connection.
type connection struct{}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: http-server ADDRESS")
	}
	http.HandleFunc("GET /peer", peer)
	http.HandleFunc("POST /echo", echo)
	server := http.Server{
		Addr: os.Args[1],
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connection{}, conn)
		},
	}
	log.Fatal(server.ListenAndServe())
}

func peer(w http.ResponseWriter, r *http.Request) {
	conn := r.Context().Value(connection{}).(*net.TCPConn)
	mptcp, err := conn.MultipathTCP()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(w, "%s %s mptcp=%t", conn.RemoteAddr(), conn.LocalAddr(), mptcp)
}

func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body)
}
