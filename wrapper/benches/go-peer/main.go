// The peer of the benchmarks: what the wrapper program of MariaDB's manual does, on the same SDK.
//
//	go-peer --config=FILE COMMAND [ARG…]
//
// AWS_ENDPOINT_URL is taken besides: this version of the SDK does not read it.
package main

import (
	"flag"
	"io"
	"log"
	"os"
	"syscall"

	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/aws/session"
	"github.com/aws/aws-sdk-go/service/sts"
	"github.com/robfig/config"
)

const (
	codeBytes       = 6
	sessionSeconds  = 900
	fifoPermissions = 0o600
)

func main() {
	configFile := flag.String("config", "", "configuration file")
	flag.Parse()
	if flag.NArg() == 0 {
		log.Fatal("no command")
	}
	serialNumber, fifo := settings(*configFile)
	client := newClient()
	log.Printf("reading the MFA code from %s", fifo)
	credentials := trade(client, serialNumber, readCode(fifo))
	become(flag.Args(), credentials)
}

func settings(file string) (serialNumber, fifo string) {
	settings, err := config.ReadDefault(file)
	check(err)
	serialNumber, err = settings.String("kms", "kms_mfa_id")
	check(err)
	fifo, err = settings.String("kms", "kms_mfa_socket")
	check(err)
	return serialNumber, fifo
}

func newClient() *sts.STS {
	options := aws.NewConfig()
	if endpoint := os.Getenv("AWS_ENDPOINT_URL"); endpoint != "" {
		options.WithEndpoint(endpoint)
	}
	session, err := session.NewSession(options)
	check(err)
	return sts.New(session)
}

func readCode(fifo string) string {
	check(syscall.Mkfifo(fifo, fifoPermissions))
	reader, err := os.Open(fifo)
	check(err)
	code := make([]byte, codeBytes)
	_, err = io.ReadFull(reader, code)
	check(err)
	check(reader.Close())
	check(os.Remove(fifo))
	return string(code)
}

func trade(client *sts.STS, serialNumber, code string) *sts.Credentials {
	answer, err := client.GetSessionToken(&sts.GetSessionTokenInput{
		DurationSeconds: aws.Int64(sessionSeconds),
		SerialNumber:    aws.String(serialNumber),
		TokenCode:       aws.String(code),
	})
	check(err)
	return answer.Credentials
}

func become(command []string, credentials *sts.Credentials) {
	for name, value := range map[string]*string{
		"AWS_ACCESS_KEY_ID":     credentials.AccessKeyId,
		"AWS_SECRET_ACCESS_KEY": credentials.SecretAccessKey,
		"AWS_SESSION_TOKEN":     credentials.SessionToken,
	} {
		check(os.Setenv(name, *value))
	}
	check(syscall.Exec(command[0], command, os.Environ()))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
