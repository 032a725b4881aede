"""What the benchmarks share: a local-aws with a code for every run, certificates, a cold start."""

import json
import os
import pathlib
import subprocess
import sys
import time

TIME_STEP_SECONDS = 30
# AWS takes signatures that are up to 15 minutes off; so does local-aws.
FARTHEST_CLOCK_SECONDS = 14 * 60
# From that far behind to that far ahead.
MOST_CODES = 2 * FARTHEST_CLOCK_SECONDS // TIME_STEP_SECONDS
SYSTEM_CERTIFICATES = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")


class LocalAws:
    """A local-aws with an account of its own, and a new MFA code for every run."""

    def __init__(self, program, state, serve_arguments):
        self.program = program
        self.state = state
        self.offset_seconds = -FARTHEST_CLOCK_SECONDS
        subprocess.run([program, "init", "--state", state], check=True, stdout=subprocess.DEVNULL)
        self.server = subprocess.Popen(
            [program, "serve", "--state", state, *serve_arguments], stdout=subprocess.PIPE
        )
        if not self.server.stdout.readline().startswith(b"listening on "):
            sys.exit("local-aws did not start")

    def read(self, name):
        return (self.state / name).read_text().strip()

    def code(self):
        """A code is good once in its time step: set the clock on by a step, and take that one's."""
        self.offset_seconds += TIME_STEP_SECONDS
        offset = f"--offset-seconds={self.offset_seconds}"
        subprocess.run([self.program, "clock", "--state", self.state, offset], check=True)
        now = int(time.time()) + self.offset_seconds
        code = ["oathtool", "--totp", "--base32", f"--now=@{now}", self.read("mfa-seed")]
        return subprocess.check_output(code)

    def environment(self):
        key = dict(line.split("=", 1) for line in self.read("env").splitlines())
        return key | {"AWS_ENDPOINT_URL": self.read("endpoint"), "AWS_REGION": "us-east-1"}

    def key_arn(self):
        """The ARN of the key."""
        state = json.loads(self.read("state.json"))
        (key_id,) = state["keys"]
        return f"arn:aws:kms:{state['region']}:{state['account']}:key/{key_id}"

    def stop(self):
        self.server.terminate()
        self.server.wait()


def make_certificates(directory):
    """A throw-away CA and its certificate for 127.0.0.1, and a bundle: the system's and that CA.

    Returns the bundle and local-aws's arguments.
    """
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    request = ("req", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(*request, "-x509", "-subj", "/CN=benchmark CA", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(*request, "-x509", "-subj", "/CN=127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem",
            "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1",
            "-addext", "basicConstraints=critical,CA:FALSE")
    bundle = directory / "bundle.pem"
    bundle.write_text(SYSTEM_CERTIFICATES.read_text() + (directory / "ca.pem").read_text())
    return bundle, ["--tls-cert", directory / "cert.pem", "--tls-key", directory / "key.pem"]


def read_from_disk(program):
    """Has the kernel forget a program that was just built, and read it as after a boot.

    What the linker wrote lies in the page cache in larger pieces, and more of them count.
    """
    with open(program, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
