// Command provider is a provider of the Secrets Store CSI Driver for Vault and OpenBao.
//
// It implements what the tests' classes use of the vault-csi-provider: a Kubernetes login with the
// token that the driver requests for the audience "vault", and reading keys of KV secrets. A failed
// object fails the mount as a whole, as upstream does.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"
	"sigs.k8s.io/yaml"
)

const tokens = "csi.storage.k8s.io/serviceAccount.tokens"

type object struct {
	Name       string `json:"objectName"`
	Path       string `json:"secretPath"`
	Key        string `json:"secretKey"`
	Permission *int32 `json:"filePermission"`
}

type server struct {
	v1alpha1.UnimplementedCSIDriverProviderServer
}

func (server) Version(context.Context, *v1alpha1.VersionRequest) (*v1alpha1.VersionResponse, error) {
	return &v1alpha1.VersionResponse{Version: "v1alpha1", RuntimeName: "provider", RuntimeVersion: "1.0.0"}, nil
}

func (server) Mount(ctx context.Context, request *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	response, err := mount(ctx, request)
	if err != nil {
		log.Print(err)
	}
	return response, err
}

func mount(ctx context.Context, request *v1alpha1.MountRequest) (*v1alpha1.MountResponse, error) {
	var parameters map[string]string
	var mode int32
	var objects []object
	if err := json.Unmarshal([]byte(request.Attributes), &parameters); err != nil {
		return nil, fmt.Errorf("attributes: %w", err)
	}
	if err := json.Unmarshal([]byte(request.Permission), &mode); err != nil {
		return nil, fmt.Errorf("permission: %w", err)
	}
	if err := yaml.Unmarshal([]byte(parameters["objects"]), &objects); err != nil {
		return nil, fmt.Errorf("objects: %w", err)
	}
	vault, err := login(ctx, parameters)
	if err != nil {
		return nil, err
	}
	defer vault.CloseIdleConnections()
	response := &v1alpha1.MountResponse{}
	for _, object := range objects {
		var secret struct {
			Data struct {
				Data map[string]string `json:"data"`
			} `json:"data"`
		}
		if err := vault.ask(ctx, "GET", object.Path, nil, &secret); err != nil {
			return nil, err
		}
		value, found := secret.Data.Data[object.Key]
		if !found {
			return nil, fmt.Errorf("%s: there is no key %s", object.Path, object.Key)
		}
		file := &v1alpha1.File{Path: object.Name, Mode: mode, Contents: []byte(value)}
		if object.Permission != nil {
			file.Mode = *object.Permission
		}
		sum := sha256.Sum256(file.Contents)
		version := &v1alpha1.ObjectVersion{Id: object.Name, Version: hex.EncodeToString(sum[:])}
		response.Files = append(response.Files, file)
		response.ObjectVersion = append(response.ObjectVersion, version)
	}
	return response, nil
}

type client struct {
	*http.Client
	address, token string
}

func login(ctx context.Context, parameters map[string]string) (*client, error) {
	pem, err := os.ReadFile(parameters["vaultCACertPath"])
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	vault := &client{Client: &http.Client{Transport: transport, Timeout: 5 * time.Second}, address: parameters["vaultAddress"]}
	var requested map[string]struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal([]byte(parameters[tokens]), &requested); err != nil {
		return nil, fmt.Errorf("%s: %w", tokens, err)
	}
	var answer struct {
		Auth struct {
			Token string `json:"client_token"`
		} `json:"auth"`
	}
	body := map[string]string{"role": parameters["roleName"], "jwt": requested["vault"].Token}
	if err := vault.ask(ctx, "POST", "auth/kubernetes/login", body, &answer); err != nil {
		return nil, err
	}
	vault.token = answer.Auth.Token
	return vault, nil
}

func (vault *client) ask(ctx context.Context, method, path string, body, answer any) error {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, vault.address+"/v1/"+path, content)
	if err != nil {
		return err
	}
	request.Header.Set("X-Vault-Token", vault.token)
	response, err := vault.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, path, response.Status)
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

func main() {
	path := flag.String("socket", "/run/secrets-store-csi-providers/vault.sock", "")
	flag.Parse()
	if err := os.RemoveAll(*path); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", *path)
	if err != nil {
		log.Fatal(err)
	}
	s := grpc.NewServer()
	v1alpha1.RegisterCSIDriverProviderServer(s, server{})
	log.Fatal(s.Serve(listener))
}
