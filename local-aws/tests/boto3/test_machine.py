"""A machine's role: instance metadata, container credentials, web identity."""

import json
import urllib.error
import urllib.request

from botocore import UNSIGNED
from botocore.credentials import ContainerProvider, InstanceMetadataProvider
from botocore.utils import InstanceMetadataFetcher

from support import ACCOUNT, ROOT, Case

ROLE = "arn:aws:iam::111122223333:role/host"
TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"
CREDENTIALS = "/latest/meta-data/iam/security-credentials/"


class Machine(Case):
    serve_arguments = ("--machine-role", "host")

    def add_role(self, principal):
        statement = {"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"}
        trust = self.aws.write("trust", {"Version": "2012-10-17", "Statement": [statement]})
        self.aws.run("role", "host", "--trust", trust)

    def ask(self, path, method="GET", **headers):
        """Status and body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.aws.url + path, method=method, headers=named)
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def metadata_token(self, seconds="60"):
        return self.ask("/latest/api/token", "PUT", **{TTL.replace("-", "_"): seconds})

    def arn(self, credentials):
        sts = self.aws.client(
            "sts",
            {
                "aws_access_key_id": credentials.access_key,
                "aws_secret_access_key": credentials.secret_key,
                "aws_session_token": credentials.token,
            },
        )
        return sts.get_caller_identity()["Arn"]


class MachineRole(Machine):
    def setUp(self):
        super().setUp()
        self.add_role({"Service": ["ecs-tasks.amazonaws.com", "ec2.amazonaws.com"]})

    def test_botocore_finds_them_in_instance_metadata(self):
        fetcher = InstanceMetadataFetcher(base_url=self.aws.url + "/")
        credentials = InstanceMetadataProvider(iam_role_fetcher=fetcher).load()
        self.assertEqual(
            self.arn(credentials), f"arn:aws:sts::{ACCOUNT}:assumed-role/host/machine"
        )

    def test_botocore_finds_them_at_the_container_endpoint(self):
        environment = {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": self.aws.url + "/container-credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": self.aws.read("container-token"),
        }
        credentials = ContainerProvider(environ=environment).load()
        self.assertEqual(
            self.arn(credentials), f"arn:aws:sts::{ACCOUNT}:assumed-role/host/machine"
        )

    def test_metadata_is_for_those_with_a_token_only(self):
        for seconds, status in (("", 400), ("0", 400), ("21601", 400), ("1", 200)):
            self.assertEqual(self.metadata_token(seconds)[0], status, seconds)
        forwarded = {TTL.replace("-", "_"): "60", "X_Forwarded_For": "10.0.0.1"}
        self.assertEqual(self.ask("/latest/api/token", "PUT", **forwarded)[0], 403)
        self.assertEqual(self.ask("/latest/api/token")[0], 404)
        self.assertEqual(self.ask(CREDENTIALS)[0], 401)
        _, token = self.metadata_token()
        header = {TOKEN.replace("-", "_"): token}
        self.assertEqual(self.ask(CREDENTIALS, **header), (200, "host"))
        self.assertEqual(self.ask(CREDENTIALS + "other", **header)[0], 404)
        self.assertEqual(json.loads(self.ask(CREDENTIALS + "host", **header)[1])["Code"], "Success")
        self.aws.run("clock", "--offset-seconds", "61")
        self.assertEqual(self.ask(CREDENTIALS + "host", **header)[0], 401)

    def test_the_container_endpoint_wants_its_own_token(self):
        self.assertEqual(self.ask("/container-credentials")[0], 401)
        other = self.aws.read("web-identity-token")
        self.assertEqual(self.ask("/container-credentials", Authorization=other)[0], 401)

    def test_a_web_identity_token_is_traded_without_a_key(self):
        sts = self.aws.client("sts", signature_version=UNSIGNED, parameter_validation=False)
        token = self.aws.read("web-identity-token")
        assume = lambda **other: sts.assume_role_with_web_identity(
            **{
                "RoleArn": ROLE,
                "RoleSessionName": "test",
                "WebIdentityToken": token,
                **other,
            }
        )
        user = assume()["AssumedRoleUser"]
        self.assertEqual(user["Arn"], f"arn:aws:sts::{ACCOUNT}:assumed-role/host/test")
        refused = self.assert_error
        container = self.aws.read("container-token")
        refused(400, "InvalidIdentityToken", "", assume, WebIdentityToken=container)
        refused(403, "AccessDenied", "Not authorized", assume, RoleArn=ROLE + "2")
        refused(400, "ValidationError", "durationSeconds", assume, DurationSeconds=899)
        self.aws.run("clock", "--offset-seconds", "21601")
        refused(400, "ExpiredTokenException", "", assume)
        self.assertNotIn(token, self.aws.read("cloudtrail.jsonl"))


class UntrustedMachine(Machine):
    def test_an_instance_has_no_credentials_of_a_role_that_does_not_trust_it(self):
        self.add_role({"AWS": ROOT, "Service": "ecs-tasks.amazonaws.com"})
        _, token = self.metadata_token()
        answer = self.ask(CREDENTIALS + "host", **{TOKEN.replace("-", "_"): token})
        self.assertEqual(answer[0], 200)
        document = json.loads(answer[1])
        self.assertEqual(document["Code"], "AssumeRoleUnauthorizedAccess")
        self.assertNotIn("AccessKeyId", document)
        fetcher = InstanceMetadataFetcher(base_url=self.aws.url + "/")
        self.assertIsNone(InstanceMetadataProvider(iam_role_fetcher=fetcher).load())


class NoMachineRole(Case):
    def test_a_machine_without_a_role_has_no_credentials(self):
        request = urllib.request.Request(self.aws.url + CREDENTIALS)
        with self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        self.assertEqual(caught.exception.code, 404)
        caught.exception.close()
