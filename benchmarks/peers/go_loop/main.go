// go_loop waits on inotify, hashes all files of a mount, and POSTs the name of each that changed.
// It keeps no ledger, retries nothing, and looks for no other fault: it is what syncd must cost more
// than.
//
//	go_loop ROOT URL
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

type event struct {
	Secret string    `json:"secret"`
	Time   time.Time `json:"time"`
}

func names(root string) []string {
	listed, err := os.ReadDir(root)
	if err != nil {
		log.Fatal(err)
	}
	var found []string
	for _, item := range listed {
		if !strings.HasPrefix(item.Name(), "..") {
			found = append(found, item.Name())
		}
	}
	sort.Strings(found)
	return found
}

func hashes(root string, names []string) map[string][32]byte {
	found := make(map[string][32]byte, len(names))
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			log.Fatal(err)
		}
		found[name] = sha256.Sum256(content)
	}
	return found
}

func post(url, name string) {
	body, _ := json.Marshal(event{Secret: name, Time: time.Now().UTC()})
	answer, err := http.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, answer.Body)
	_ = answer.Body.Close()
}

func main() {
	root, url := os.Args[1], os.Args[2]
	descriptor, err := syscall.InotifyInit1(syscall.IN_CLOEXEC)
	if err != nil {
		log.Fatal(err)
	}
	if _, err := syscall.InotifyAddWatch(descriptor, root, syscall.IN_MOVED_TO); err != nil {
		log.Fatal(err)
	}
	listed := names(root)
	known := hashes(root, listed)
	buffer := make([]byte, 64<<10)
	for {
		size, err := syscall.Read(descriptor, buffer)
		if err != nil {
			log.Fatal(err)
		}
		if !bytes.Contains(buffer[:size], []byte("..data\x00")) {
			continue
		}
		found := hashes(root, listed)
		for _, name := range listed {
			if found[name] != known[name] {
				post(url, name)
			}
		}
		known = found
	}
}
