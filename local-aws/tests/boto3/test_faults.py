"""Faults on demand, and the call log."""

import concurrent.futures
import http.client
import socket
import time
import unittest
import urllib.parse

import botocore.exceptions
from support import ACCOUNT, Case, KEY_ARN_PREFIX, as_credentials


class Faults(Case):
    def fault(self, operation, kind, *more):
        self.aws.run("fault", "--operation", operation, "--kind", kind, *more)

    def attempt(self, mfa):
        """The answer to GetSessionToken; empty if boto3 makes none of it (a KeyError, even)."""
        try:
            return self.sts.get_session_token(**mfa)
        except Exception:  # pylint: disable=broad-exception-caught
            return {}

    def test_each_error_is_of_its_service(self):
        for kind, status, sts_code, kms_code in (
            ("throttle", 400, "Throttling", "ThrottlingException"),
            ("500", 500, "InternalFailure", "KMSInternalException"),
            ("503", 503, "ServiceUnavailable", "ServiceUnavailableException"),
        ):
            self.fault("any", kind, "--count", "2")
            self.assert_error(status, sts_code, "", self.sts.get_caller_identity)
            self.assert_error(status, kms_code, "", self.kms.list_aliases)
            self.sts.get_caller_identity()
            self.kms.list_aliases()

    def test_a_fault_without_a_count_stays_until_cleared(self):
        self.fault("Decrypt", "500")
        blob = self.kms.encrypt(KeyId="alias/mariadb", Plaintext=b"x")["CiphertextBlob"]
        for _ in range(3):
            self.assert_error(
                500, "KMSInternalException", "", self.kms.decrypt, CiphertextBlob=blob
            )
        self.aws.stop()
        self.aws.serve()
        kms = self.aws.client("kms")
        self.assert_error(500, "KMSInternalException", "", kms.decrypt, CiphertextBlob=blob)
        self.aws.run("fault", "--clear")
        self.assertEqual(kms.decrypt(CiphertextBlob=blob)["Plaintext"], b"x")

    def test_a_fault_spends_no_code(self):
        mfa = {"SerialNumber": self.aws.serial_number(), "TokenCode": self.aws.code()}
        for kind in ("500", "503", "throttle", "reset", "garbage", "no-credentials", "empty"):
            self.fault("GetSessionToken", kind, "--count", "1")
            self.assertNotIn("Credentials", self.attempt(mfa))
        self.aws.client("kms", as_credentials(self.sts.get_session_token(**mfa))).list_aliases()

    def test_a_delay_comes_before_the_answer(self):
        self.fault("ListAliases", "delay", "--milliseconds", "300")
        before = time.monotonic()
        self.kms.list_aliases()
        self.assertGreaterEqual(time.monotonic() - before, 0.3)

    def test_delays_of_calls_at_the_same_time_do_not_add_up(self):
        self.fault("ListAliases", "delay", "--milliseconds", "500")
        before = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda _: self.kms.list_aliases(), range(10)))
        self.assertLess(time.monotonic() - before, 4)

    def test_a_delay_and_another_fault_work_together(self):
        self.fault("ListAliases", "delay", "--milliseconds", "200", "--count", "1")
        self.fault("ListAliases", "throttle", "--count", "1")
        before = time.monotonic()
        self.assert_error(400, "ThrottlingException", "", self.kms.list_aliases)
        self.assertGreaterEqual(time.monotonic() - before, 0.2)

    def raw(self):
        address = urllib.parse.urlsplit(self.aws.url)
        connection = socket.create_connection((address.hostname, address.port))
        connection.settimeout(10)
        body = b"Action=GetSessionToken&Version=2011-06-15"
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        return connection

    def test_a_reset_is_a_reset_and_no_orderly_close(self):
        self.fault("GetSessionToken", "reset", "--count", "1")
        with self.raw() as connection:
            with self.assertRaises(ConnectionResetError):
                connection.recv(1)

    def test_silence_lasts_and_leaves_the_connection_open(self):
        self.fault("GetSessionToken", "silence", "--count", "1")
        with self.raw() as connection:
            connection.settimeout(1)
            with self.assertRaises(TimeoutError):
                connection.recv(1)
        self.sts.get_session_token()

    def test_garbage_is_a_page_of_a_captive_portal(self):
        self.fault("any", "garbage", "--count", "2")
        for headers in ({}, {"X-Amz-Target": "TrentService.Decrypt"}):
            connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.aws.url).netloc)
            connection.request("POST", "/", body="", headers=headers)
            response = connection.getresponse()
            self.assertEqual(response.status, 200)
            self.assertEqual(response.getheader("content-type"), "text/html")
            self.assertIn(b"<html>", response.read())
            connection.close()

    def test_an_answer_without_credentials_and_an_empty_one(self):
        self.fault("GetSessionToken", "no-credentials", "--count", "1")
        response = self.sts.get_session_token()
        self.assertEqual(response["ResponseMetadata"]["HTTPStatusCode"], 200)
        self.assertNotIn("Credentials", response)
        self.fault("ListAliases", "empty", "--count", "1")
        response = self.kms.list_aliases()
        self.assertEqual(response["ResponseMetadata"]["HTTPHeaders"]["content-length"], "0")

    def test_mistakes_on_the_command_line_are_told(self):
        for arguments, named in (
            (("--operation", "decrypt", "--kind", "500"), "Decrypt"),
            (("--operation", "Decrypt", "--kind", "flood"), "flood"),
            (("--operation", "Decrypt", "--kind", "delay"), "--milliseconds"),
            (("--operation", "Decrypt", "--kind", "500", "--milliseconds", "1"), "delay"),
            (("--operation", "Decrypt"), "--kind"),
            ((), "--operation"),
        ):
            with self.assertRaisesRegex(AssertionError, named):
                self.aws.run("fault", *arguments)


class Trail(Case):
    def test_a_call_is_in_the_log_when_its_answer_is_there(self):
        for _ in range(3):
            response = self.kms.list_aliases()
            request_id = response["ResponseMetadata"]["RequestId"]
            self.assertEqual(self.aws.records()[-1]["requestID"], request_id)

    def test_a_record_tells_who_what_and_on_which_key(self):
        kms = self.aws.client("kms", self.aws.session())
        kms.encrypt(KeyId="alias/mariadb", Plaintext=b"x", EncryptionContext={"a": "1"})
        record = self.aws.records()[-1]
        arn = KEY_ARN_PREFIX + f"key/{self.key_id()}"
        self.assertEqual(record["eventSource"], "kms.amazonaws.com")
        self.assertEqual(record["eventName"], "Encrypt")
        self.assertEqual(record["awsRegion"], "us-east-1")
        self.assertEqual(record["sourceIPAddress"], "127.0.0.1")
        self.assertEqual(
            record["requestParameters"],
            {"keyId": "alias/mariadb", "encryptionContext": {"a": "1"}},
        )
        self.assertIsNone(record["responseElements"])
        self.assertNotIn("errorCode", record)
        self.assertEqual(
            record["resources"],
            [{"accountId": ACCOUNT, "type": "AWS::KMS::Key", "ARN": arn}],
        )
        identity = record["userIdentity"]
        self.assertEqual(identity["type"], "IAMUser")
        self.assertEqual(identity["userName"], "mariadb")
        self.assertEqual(identity["arn"], f"arn:aws:iam::{ACCOUNT}:user/mariadb")
        self.assertRegex(identity["accessKeyId"], "^ASIA")
        self.assertEqual(identity["sessionContext"]["attributes"]["mfaAuthenticated"], "true")
        self.assertRegex(record["eventTime"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")

    def test_a_failure_is_recorded_with_its_error(self):
        with self.assertRaises(botocore.exceptions.ClientError):
            self.kms.describe_key(KeyId="alias/none")
        record = self.aws.records()[-1]
        self.assertEqual(record["errorCode"], "NotFoundException")
        self.assertIn("is not found", record["errorMessage"])

    def test_an_unknown_caller_is_recorded(self):
        wrong = dict(self.aws.long_term(), aws_secret_access_key="x" * 40)
        with self.assertRaises(botocore.exceptions.ClientError):
            self.aws.client("sts", wrong).get_caller_identity()
        record = self.aws.records()[-1]
        self.assertEqual(record["userIdentity"], {"type": "Unknown"})
        self.assertEqual(record["errorCode"], "SignatureDoesNotMatch")

    def test_a_fault_is_recorded(self):
        for kind, code in (("reset", "LocalAwsFault"), ("throttle", "Throttling")):
            self.aws.run("fault", "--operation", "any", "--kind", kind, "--count", "1")
            with self.assertRaises(Exception):
                self.sts.get_caller_identity()
            self.assertEqual(self.aws.records()[-1]["errorCode"], code)

    def test_no_secret_is_in_the_log(self):
        code = self.aws.code()
        mfa = {"SerialNumber": self.aws.serial_number(), "TokenCode": code}
        session = as_credentials(self.sts.get_session_token(**mfa))
        with self.assertRaises(botocore.exceptions.ClientError):
            self.sts.get_session_token(**mfa)
        kms = self.aws.client("kms", session)
        blob = kms.encrypt(KeyId="alias/mariadb", Plaintext=b"plain secret")["CiphertextBlob"]
        kms.decrypt(CiphertextBlob=blob)
        kms.generate_data_key(KeyId="alias/mariadb", KeySpec="AES_128")
        log = self.aws.read("cloudtrail.jsonl")
        self.assertNotIn("TokenCode", log)
        self.assertNotIn('"tokenCode"', log)
        for secret in (
            f'"{code}"',
            "cGxhaW4gc2VjcmV0",
            session["aws_secret_access_key"],
            session["aws_session_token"],
            self.aws.long_term()["aws_secret_access_key"],
            self.aws.read("mfa-seed").strip(),
        ):
            self.assertNotIn(secret, log)


if __name__ == "__main__":
    unittest.main()
