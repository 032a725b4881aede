"""Requests as such: signatures, times, scopes, forms; sent without a client's help."""

import contextlib
import datetime
import http.client
import json
import unittest
import unittest.mock
import urllib.parse

import botocore.auth
import botocore.awsrequest
import botocore.credentials
from support import REGION, Case, as_credentials, to_base64

WRONG_SIGNATURE = (
    "The request signature we calculated does not match the signature you provided. Check your "
    "AWS Secret Access Key and signing method. Consult the service documentation for details."
)
STS_FORM = "Action=GetCallerIdentity&Version=2011-06-15"


@contextlib.contextmanager
def client_clock(seconds):
    """boto3's clock, this many seconds ahead."""
    real = botocore.auth.get_current_datetime

    def shifted(*arguments, **more):
        return real(*arguments, **more) + datetime.timedelta(seconds=seconds)

    with unittest.mock.patch("botocore.auth.get_current_datetime", shifted):
        yield


class Credentials(Case):
    def test_a_wrong_secret(self):
        wrong = dict(self.aws.long_term(), aws_secret_access_key="x" * 40)
        sts, kms = self.aws.client("sts", wrong), self.aws.client("kms", wrong)
        self.assert_error(403, "SignatureDoesNotMatch", WRONG_SIGNATURE, sts.get_caller_identity)
        self.assert_error(400, "InvalidSignatureException", WRONG_SIGNATURE, kms.list_aliases)

    def test_an_unknown_access_key(self):
        wrong = dict(self.aws.long_term(), aws_access_key_id="AKIAIOSFODNN7EXAMPLE")
        message = "The security token included in the request is invalid."
        sts, kms = self.aws.client("sts", wrong), self.aws.client("kms", wrong)
        self.assert_error(403, "InvalidClientTokenId", message, sts.get_caller_identity)
        self.assert_error(400, "UnrecognizedClientException", message, kms.list_aliases)

    def test_a_session_needs_its_own_whole_token(self):
        session = as_credentials(self.sts.get_session_token())
        other = as_credentials(self.sts.get_session_token())
        without = {name: session[name] for name in session if name != "aws_session_token"}
        message = "The security token included in the request is invalid."
        for wrong in (
            without,
            dict(session, aws_session_token=other["aws_session_token"]),
            dict(session, aws_session_token=session["aws_session_token"][:-8]),
            dict(self.aws.long_term(), aws_session_token=session["aws_session_token"]),
        ):
            kms = self.aws.client("kms", wrong)
            self.assert_error(400, "UnrecognizedClientException", message, kms.list_aliases)
        self.aws.client("kms", session).list_aliases()


class Time(Case):
    def test_a_clock_up_to_15_minutes_off_is_taken(self):
        for seconds in (-840, 840):
            with client_clock(seconds):
                self.sts.get_caller_identity()
                self.kms.list_aliases()

    def test_a_clock_behind_is_told_as_expired_and_one_ahead_as_not_yet_current(self):
        for seconds, pattern in (
            (-960, r"Signature expired: (\w+) is now earlier than (\w+) \((\w+) - 15 min\.\)"),
            (
                960,
                r"Signature not yet current: (\w+) is still later than (\w+) \((\w+) \+ 15 min\.\)",
            ),
        ):
            with client_clock(seconds):
                response = self.assert_error(
                    403, "SignatureDoesNotMatch", "", self.sts.get_caller_identity
                )
                self.assert_error(400, "InvalidSignatureException", "", self.kms.list_aliases)
            message = response["Error"]["Message"]
            self.assertRegex(message, f"^{pattern}$")

    def test_the_servers_clock_can_be_shifted_and_is_in_the_date_header(self):
        self.aws.run("clock", "--offset-seconds", "-3600")
        response = self.assert_error(
            403, "SignatureDoesNotMatch", "Signature not yet current", self.sts.get_caller_identity
        )
        date = response["ResponseMetadata"]["HTTPHeaders"]["date"]
        date = datetime.datetime.strptime(date, "%a, %d %b %Y %H:%M:%S GMT")
        now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
        self.assertAlmostEqual((now - date).total_seconds(), 3600, delta=30)
        with client_clock(-3600):
            self.sts.get_caller_identity()
        self.aws.run("clock", "--offset-seconds", "0")
        self.sts.get_caller_identity()

    def test_a_scheduled_deletion_is_carried_out(self):
        key_id = self.key_id()
        self.kms.schedule_key_deletion(KeyId=key_id, PendingWindowInDays=7)
        seconds = 7 * 86400 + 60
        self.aws.run("clock", "--offset-seconds", str(seconds))
        with client_clock(seconds):
            self.assert_error(
                400, "NotFoundException", "does not exist", self.kms.describe_key, KeyId=key_id
            )

    def test_a_session_over_36_hours_is_over(self):
        session = as_credentials(self.sts.get_session_token(DurationSeconds=129600))
        sts = self.aws.client("sts", session)
        for seconds, over in ((129000, False), (129660, True)):
            self.aws.run("clock", "--offset-seconds", str(seconds))
            with client_clock(seconds):
                if over:
                    self.assert_error(403, "ExpiredToken", "expired", sts.get_caller_identity)
                else:
                    sts.get_caller_identity()


class Scope(Case):
    def test_another_region(self):
        message = "Credential should be scoped to a valid region, not 'eu-west-1'. "
        sts = self.aws.client("sts", region="eu-west-1")
        kms = self.aws.client("kms", region="eu-west-1")
        self.assert_error(403, "SignatureDoesNotMatch", message, sts.get_caller_identity)
        self.assert_error(400, "InvalidSignatureException", message, kms.list_aliases)


class Raw(Case):
    """Signs by botocore's signer and changes the request afterwards, or sends its own."""

    def send(self, headers, body=STS_FORM, method="POST", path="/"):
        host = urllib.parse.urlsplit(self.aws.url).netloc
        connection = http.client.HTTPConnection(host)
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response, text

    def signed(self, service="sts", body=STS_FORM, scope=None, method="POST", path="/", **headers):
        secrets = self.aws.long_term()
        credentials = botocore.credentials.Credentials(
            secrets["aws_access_key_id"], secrets["aws_secret_access_key"]
        )
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = botocore.awsrequest.AWSRequest(
            method, self.aws.url + path, data=body, headers=headers
        )
        botocore.auth.SigV4Auth(credentials, scope or service, REGION).add_auth(request)
        return dict(request.headers)

    def kms_headers(self, target="TrentService.ListAliases", body="{}", **more):
        return self.signed("kms", body, X_Amz_Target=target, **more)

    def assert_sts(self, response, status, code, message):
        response, text = response
        self.assertEqual(response.status, status, text)
        self.assertIn(f"<Code>{code}</Code>", text)
        self.assertIn(f"<Message>{message}", text)
        self.assertIn('<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">', text)
        self.assertIn(f"<RequestId>{response.getheader('x-amzn-RequestId')}</RequestId>", text)

    def assert_kms(self, response, status, code, message=""):
        response, text = response
        self.assertEqual(response.status, status, text)
        self.assertEqual(response.getheader("content-type"), "application/x-amz-json-1.1")
        self.assertEqual(json.loads(text)["__type"], code)
        self.assertIn(message, json.loads(text).get("message", ""))

    def test_what_is_signed_whole_is_taken(self):
        response, text = self.send(self.signed())
        self.assertEqual(response.status, 200)
        self.assertIn("<GetCallerIdentityResult>", text)
        response, _ = self.send(self.kms_headers(), "{}")
        self.assertEqual(response.status, 200)

    def test_sts_takes_get_too(self):
        path = f"/?{STS_FORM}"
        headers = self.signed(method="GET", body="", path=path)
        response, text = self.send(headers, None, "GET", path)
        self.assertEqual(response.status, 200, text)

    def test_without_a_signature(self):
        message = "Request is missing Authentication Token"
        self.assert_sts(self.send({}), 403, "MissingAuthenticationToken", message)
        self.assert_kms(
            self.send({"X-Amz-Target": "TrentService.ListAliases"}, "{}"),
            400,
            "MissingAuthenticationTokenException",
        )

    def test_with_half_a_signature(self):
        for kept, missing in (
            ("Credential=a/b/c/d/aws4_request, SignedHeaders=host", "'Signature' parameter"),
            ("Credential=a/b/c/d/aws4_request, Signature=00", "'SignedHeaders' parameter"),
            ("SignedHeaders=host, Signature=00", "'Credential' parameter"),
        ):
            headers = {
                "Authorization": f"AWS4-HMAC-SHA256 {kept}",
                "X-Amz-Date": "20260101T000000Z",
            }
            message = f"Authorization header requires {missing}.".replace("'", "&apos;")
            self.assert_sts(self.send(headers), 400, "IncompleteSignature", message)
            headers["X-Amz-Target"] = "TrentService.ListAliases"
            self.assert_kms(
                self.send(headers, "{}"), 400, "IncompleteSignatureException", missing
            )

    def test_a_body_changed_on_the_way(self):
        body = STS_FORM.replace("GetCallerIdentity", "GetSessionToken")
        self.assert_sts(
            self.send(self.signed(), body), 403, "SignatureDoesNotMatch", WRONG_SIGNATURE
        )
        self.assert_kms(
            self.send(self.kms_headers(), '{"KeyId":"x"}'), 400, "InvalidSignatureException"
        )

    def test_a_header_changed_added_or_not_signed(self):
        headers = self.kms_headers()
        changed = dict(headers, **{"X-Amz-Target": "TrentService.CreateKey"})
        self.assert_kms(self.send(changed, "{}"), 400, "InvalidSignatureException")
        added = dict(headers, **{"X-Amz-Security-Token": "x"})
        self.assert_kms(self.send(added, "{}"), 400, "UnrecognizedClientException")
        added = dict(headers, **{"X-Amz-Other": "x"})
        message = "'x-amz-other' must be a 'SignedHeader' in the AWS Authorization."
        self.assert_kms(self.send(added, "{}"), 400, "InvalidSignatureException", message)
        unsigned = dict(headers)
        unsigned["Authorization"] = unsigned["Authorization"].replace("host;", "")
        message = "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization."
        self.assert_kms(self.send(unsigned, "{}"), 400, "InvalidSignatureException", message)

    def test_another_services_scope(self):
        self.assert_sts(
            self.send(self.signed(scope="kms")),
            403,
            "SignatureDoesNotMatch",
            "Credential should be scoped to correct service: &apos;sts&apos;.",
        )

    def test_another_days_scope(self):
        headers = self.signed()
        day = headers["X-Amz-Date"][:8]
        headers["Authorization"] = headers["Authorization"].replace(f"/{day}/", "/20200101/")
        self.assert_sts(
            self.send(headers),
            403,
            "SignatureDoesNotMatch",
            "Date in Credential scope does not match YYYYMMDD",
        )

    def test_a_date_that_is_none(self):
        headers = self.signed()
        headers["X-Amz-Date"] = headers["X-Amz-Date"][:8] + "Tnoon"
        self.assert_sts(
            self.send(headers), 403, "SignatureDoesNotMatch", "Date must be in ISO-8601"
        )

    def test_unknown_operations(self):
        form = "Action=GetFederationToken&Version=2011-06-15"
        message = "Could not find operation GetFederationToken for version 2011-06-15"
        self.assert_sts(self.send(self.signed(body=form), form), 400, "InvalidAction", message)
        form = "Action=GetCallerIdentity&Version=2010-05-08"
        self.assert_sts(
            self.send(self.signed(body=form), form),
            400,
            "InvalidAction",
            "Could not find operation GetCallerIdentity for version 2010-05-08",
        )
        for target in ("TrentService.Sign", "DynamoDB_20120810.ListTables", ""):
            self.assert_kms(
                self.send(self.kms_headers(target), "{}"), 400, "UnknownOperationException"
            )

    def test_bodies_of_the_wrong_form(self):
        for body in ("", "{", "[]", '"x"', '{"KeyId":1}', '{"Marker":"x"}'):
            self.assert_kms(
                self.send(self.kms_headers(body=body), body), 400, "SerializationException"
            )

    def test_what_is_wrong_with_a_body_is_not_logged(self):
        body = '{"KeyId":"alias/mariadb","Plaintext":20261234}'
        headers = self.kms_headers("TrentService.Encrypt", body)
        self.assert_kms(self.send(headers, body), 400, "SerializationException", "20261234")
        self.assertNotIn("20261234", self.aws.read("cloudtrail.jsonl"))

    def test_base64_that_is_none(self):
        body = '{"KeyId":"alias/mariadb","Plaintext":"*"}'
        headers = self.kms_headers("TrentService.Encrypt", body)
        self.assert_kms(self.send(headers, body), 400, "SerializationException", "not base64")

    def test_other_paths_and_long_bodies(self):
        response, _ = self.send({}, path="/other")
        self.assertEqual(response.status, 404)
        response, _ = self.send({}, body="x" * (256 * 1024 + 1))
        self.assertEqual(response.status, 413)

    def test_a_policy_of_the_greatest_length_fits(self):
        policy = json.dumps(
            {
                "Statement": {
                    "Sid": "x" * 32000,
                    "Effect": "Allow",
                    "Principal": "*",
                    "Action": "kms:*",
                    "Resource": "*",
                }
            }
        )
        body = json.dumps({"KeyId": self.key_id(), "Policy": policy})
        headers = self.kms_headers("TrentService.PutKeyPolicy", body)
        response, text = self.send(headers, body)
        self.assertEqual((response.status, text), (200, ""))

    def test_the_plaintext_is_base64_in_the_answer(self):
        body = json.dumps({"KeyId": "alias/mariadb", "Plaintext": to_base64(b"secret")})
        _, text = self.send(self.kms_headers("TrentService.Encrypt", body), body)
        body = json.dumps({"CiphertextBlob": json.loads(text)["CiphertextBlob"]})
        _, text = self.send(self.kms_headers("TrentService.Decrypt", body), body)
        self.assertEqual(json.loads(text)["Plaintext"], to_base64(b"secret"))


if __name__ == "__main__":
    unittest.main()
