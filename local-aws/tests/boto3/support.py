"""A local-aws of its own for each test, and boto3 clients for it."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import unittest

import boto3
import botocore.exceptions
from botocore.config import Config

BINARY = os.environ["LOCAL_AWS"]
ACCOUNT = "111122223333"
REGION = "us-east-1"
KEY_ARN_PREFIX = f"arn:aws:kms:{REGION}:{ACCOUNT}:"
ROOT = f"arn:aws:iam::{ACCOUNT}:root"


class LocalAws:
    """A state directory, made by init with these arguments, and the server on it."""

    def __init__(self, *init_arguments):
        self.parent = tempfile.mkdtemp(prefix="local-aws-")
        self.state = os.path.join(self.parent, "state")
        self.server = None
        self.run("init", *init_arguments)

    def run(self, command, *arguments):
        """Runs a command on the state; its standard output."""
        done = subprocess.run(
            [BINARY, command, "--state", self.state, *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise AssertionError(f"{command} {arguments}: {done.stderr}")
        return done.stdout

    def serve(self, *arguments):
        """Starts the server and returns when it is ready."""
        self.server = subprocess.Popen(
            [BINARY, "serve", "--state", self.state, *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self.server.stdout.readline()
        if not line.startswith("listening on "):
            raise AssertionError(f"the server is not ready: {line!r}")
        self.url = line.split()[-1]
        return self

    def stop(self):
        """Ends the server; its exit status."""
        self.server.terminate()
        status = self.server.wait()
        self.server.stdout.close()
        self.server = None
        return status

    def remove(self):
        if self.server:
            self.stop()
        shutil.rmtree(self.parent)

    def read(self, name):
        with open(os.path.join(self.state, name), encoding="utf-8") as file:
            return file.read()

    def write(self, name, content):
        """Writes a JSON file beside the state; its path."""
        path = os.path.join(self.parent, name)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content, file)
        return path

    def records(self):
        """The call log."""
        return [json.loads(line) for line in self.read("cloudtrail.jsonl").splitlines()]

    def long_term(self, user=None):
        """A user's credentials, as boto3 takes them."""
        lines = self.read(f"users/{user}/env" if user else "env").split()
        values = dict(line.split("=", 1) for line in lines)
        return {
            "aws_access_key_id": values["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": values["AWS_SECRET_ACCESS_KEY"],
        }

    def client(self, service, credentials=None, **config):
        """A boto3 client that tries once."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=config.pop("region", REGION),
            config=Config(retries={"total_max_attempts": 1}, **config),
            **(credentials or self.long_term()),
        )

    def serial_number(self, user=None):
        return self.read(f"users/{user}/mfa-serial" if user else "mfa-serial").strip()

    def code(self, user=None, steps=0):
        """oathtool's code, of the present 30 seconds or `steps` of them later."""
        seed = self.read(f"users/{user}/mfa-seed" if user else "mfa-seed")
        return subprocess.run(
            ["oathtool", "--totp", "-b", "--now", f"now + {30 * steps} seconds", "-"],
            input=seed,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def session(self, user=None, mfa=True, steps=0, **parameters):
        """Credentials from GetSessionToken, as boto3 takes them."""
        if mfa:
            parameters["SerialNumber"] = self.serial_number(user)
            parameters["TokenCode"] = self.code(user, steps)
        sts = self.client("sts", self.long_term(user))
        return as_credentials(sts.get_session_token(**parameters))


class Case(unittest.TestCase):
    """A test with a server; `serve_arguments` are its own."""

    serve_arguments = ()

    def setUp(self):
        self.aws = LocalAws()
        self.addCleanup(self.aws.remove)
        self.aws.serve(*self.serve_arguments)
        self.sts = self.aws.client("sts")
        self.kms = self.aws.client("kms")

    def assert_error(self, status, code, message, call, *arguments, **parameters):
        """That the call is answered by this error; a message may be part of the whole."""
        with self.assertRaises(botocore.exceptions.ClientError) as raised:
            call(*arguments, **parameters)
        response = raised.exception.response
        self.assertEqual(response["Error"]["Code"], code)
        self.assertIn(message, response["Error"].get("Message", ""))
        self.assertEqual(response["ResponseMetadata"]["HTTPStatusCode"], status)
        return response

    def key_id(self):
        """The id of the key that init made."""
        return self.kms.describe_key(KeyId="alias/mariadb")["KeyMetadata"]["KeyId"]

    def put_key_policy(self, *statements):
        """Puts a key policy of these statements; the first user may always change it again."""
        keep = {
            "Effect": "Allow",
            "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:user/mariadb"},
            "Action": ["kms:PutKeyPolicy", "kms:DescribeKey"],
            "Resource": "*",
        }
        policy = {"Version": "2012-10-17", "Statement": [keep, *statements]}
        self.kms.put_key_policy(KeyId=self.key_id(), Policy=json.dumps(policy))


def as_credentials(response):
    credentials = response["Credentials"]
    return {
        "aws_access_key_id": credentials["AccessKeyId"],
        "aws_secret_access_key": credentials["SecretAccessKey"],
        "aws_session_token": credentials["SessionToken"],
    }


def allow(action, principal=ROOT, **more):
    """A statement of a key policy."""
    return {
        "Effect": "Allow",
        "Principal": {"AWS": principal},
        "Action": action,
        "Resource": "*",
        **more,
    }


def to_base64(data):
    return base64.b64encode(data).decode()
