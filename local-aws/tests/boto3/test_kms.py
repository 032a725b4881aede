"""KMS: keys and what is encrypted under them."""

import base64
import json
import time
import unittest
import uuid

from support import ACCOUNT, KEY_ARN_PREFIX, Case, allow


class Cryptography(Case):
    def setUp(self):
        super().setUp()
        self.id = self.key_id()
        self.arn = KEY_ARN_PREFIX + f"key/{self.id}"

    def test_a_key_is_known_by_id_arn_alias_and_alias_arn(self):
        names = (self.id, self.arn, "alias/mariadb", KEY_ARN_PREFIX + "alias/mariadb")
        for name in names:
            blob = self.kms.encrypt(KeyId=name, Plaintext=b"secret")
            self.assertEqual(blob["KeyId"], self.arn)
            for other in names:
                plain = self.kms.decrypt(KeyId=other, CiphertextBlob=blob["CiphertextBlob"])
                self.assertEqual(plain["Plaintext"], b"secret")

    def test_a_blob_names_its_key_by_itself(self):
        blob = self.kms.encrypt(KeyId=self.id, Plaintext=b"secret")["CiphertextBlob"]
        self.assertNotIn(b"secret", blob)
        plain = self.kms.decrypt(CiphertextBlob=blob)
        self.assertEqual(plain["Plaintext"], b"secret")
        self.assertEqual(plain["KeyId"], self.arn)
        self.assertEqual(plain["EncryptionAlgorithm"], "SYMMETRIC_DEFAULT")

    def test_data_keys_have_the_asked_length_and_unwrap_to_themselves(self):
        for asked, length in (
            ({"KeySpec": "AES_128"}, 16),
            ({"KeySpec": "AES_256"}, 32),
            ({"NumberOfBytes": 1}, 1),
            ({"NumberOfBytes": 1024}, 1024),
        ):
            key = self.kms.generate_data_key(KeyId=self.id, **asked)
            self.assertEqual(len(key["Plaintext"]), length)
            self.assertEqual(key["KeyId"], self.arn)
            plain = self.kms.decrypt(CiphertextBlob=key["CiphertextBlob"])["Plaintext"]
            self.assertEqual(plain, key["Plaintext"])
            blind = self.kms.generate_data_key_without_plaintext(KeyId=self.id, **asked)
            self.assertNotIn("Plaintext", blind)
            plain = self.kms.decrypt(CiphertextBlob=blind["CiphertextBlob"])["Plaintext"]
            self.assertEqual(len(plain), length)

    def test_a_data_key_needs_one_length(self):
        message = "Please specify either number of bytes or key spec."
        for asked in ({}, {"KeySpec": "AES_128", "NumberOfBytes": 16}):
            self.assert_error(
                400,
                "ValidationException",
                message,
                self.kms.generate_data_key_without_plaintext,
                KeyId=self.id,
                **asked,
            )
        kms = self.aws.client("kms", parameter_validation=False)
        for number in (0, 1025):
            self.assert_error(
                400,
                "ValidationException",
                f"Value '{number}' at 'numberOfBytes' failed to satisfy constraint",
                kms.generate_data_key,
                KeyId=self.id,
                NumberOfBytes=number,
            )
        self.assert_error(
            400,
            "SerializationException",
            "AES_192",
            kms.generate_data_key,
            KeyId=self.id,
            KeySpec="AES_192",
        )

    def test_plaintexts_have_up_to_4096_bytes(self):
        kms = self.aws.client("kms", parameter_validation=False)
        blob = kms.encrypt(KeyId=self.id, Plaintext=bytes(4096))["CiphertextBlob"]
        self.assertEqual(kms.decrypt(CiphertextBlob=blob)["Plaintext"], bytes(4096))
        for length, word in ((4097, "less"), (0, "greater")):
            self.assert_error(
                400,
                "ValidationException",
                "1 validation error detected: Value at 'plaintext' failed to satisfy constraint: "
                f"Member must have length {word} than or equal to",
                kms.encrypt,
                KeyId=self.id,
                Plaintext=bytes(length),
            )

    def test_the_encryption_context_must_be_the_same(self):
        context = {"purpose": "test", "b": "2"}
        blob = self.kms.encrypt(KeyId=self.id, Plaintext=b"x", EncryptionContext=context)
        blob = blob["CiphertextBlob"]
        self.kms.decrypt(CiphertextBlob=blob, EncryptionContext=dict(reversed(context.items())))
        for other in ({}, {"purpose": "test"}, {"purpose": "Test", "b": "2"}):
            self.assert_error(
                400,
                "InvalidCiphertextException",
                "",
                self.kms.decrypt,
                CiphertextBlob=blob,
                EncryptionContext=other,
            )

    def test_what_is_no_blob_of_a_key_is_refused(self):
        blob = self.kms.encrypt(KeyId=self.id, Plaintext=b"x")["CiphertextBlob"]
        for wrong in (b"x", bytes(6144), blob[:-1], blob + b"x", blob[:-1] + b"\xff"):
            self.assert_error(
                400, "InvalidCiphertextException", "", self.kms.decrypt, CiphertextBlob=wrong
            )

    def test_a_blob_of_a_key_that_is_not_here_is_denied(self):
        blob = self.kms.encrypt(KeyId=self.id, Plaintext=b"x")["CiphertextBlob"]
        foreign = blob.replace(uuid.UUID(self.id).bytes, uuid.uuid4().bytes)
        self.assertNotEqual(blob, foreign)
        self.assert_error(
            400,
            "AccessDeniedException",
            "The ciphertext refers to a customer master key that does not exist, does not exist "
            "in this region, or you are not allowed to access.",
            self.kms.decrypt,
            CiphertextBlob=foreign,
        )

    def test_a_key_that_did_not_make_the_blob_is_refused(self):
        other = self.kms.create_key()["KeyMetadata"]["KeyId"]
        blob = self.kms.encrypt(KeyId=self.id, Plaintext=b"x")["CiphertextBlob"]
        self.assert_error(
            400,
            "IncorrectKeyException",
            "The key ID in the request does not identify a CMK that can perform this operation.",
            self.kms.decrypt,
            KeyId=other,
            CiphertextBlob=blob,
        )

    def test_re_encryption_moves_to_another_key_and_context(self):
        other = self.kms.create_key()["KeyMetadata"]
        blob = self.kms.encrypt(KeyId=self.id, Plaintext=b"x", EncryptionContext={"a": "1"})
        moved = self.kms.re_encrypt(
            CiphertextBlob=blob["CiphertextBlob"],
            SourceEncryptionContext={"a": "1"},
            DestinationKeyId=other["KeyId"],
            DestinationEncryptionContext={"a": "2"},
        )
        self.assertEqual(moved["SourceKeyId"], self.arn)
        self.assertEqual(moved["KeyId"], other["Arn"])
        plain = self.kms.decrypt(
            CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"a": "2"}
        )
        self.assertEqual(plain["Plaintext"], b"x")
        self.assertEqual(plain["KeyId"], other["Arn"])

    def test_wrapped_keys_open_after_a_restart(self):
        key = self.kms.generate_data_key(KeyId=self.id, KeySpec="AES_256")
        self.assertEqual(self.aws.stop(), 0)
        self.aws.serve()
        kms = self.aws.client("kms")
        plain = kms.decrypt(CiphertextBlob=key["CiphertextBlob"])["Plaintext"]
        self.assertEqual(plain, key["Plaintext"])

    def test_what_is_not_done_is_refused_and_not_ignored(self):
        self.assert_error(
            400,
            "SerializationException",
            "unknown field `GrantTokens`",
            self.kms.encrypt,
            KeyId=self.id,
            Plaintext=b"x",
            GrantTokens=["token"],
        )


class NotFound(Case):
    def test_each_name_of_nothing_is_told_in_its_own_words(self):
        missing = str(uuid.uuid4())
        for name, code, message in (
            ("alias/none", "NotFoundException", f"Alias {KEY_ARN_PREFIX}alias/none is not found."),
            (missing, "NotFoundException", f"Key '{KEY_ARN_PREFIX}key/{missing}' does not exist"),
            (
                KEY_ARN_PREFIX + f"key/{missing}",
                "NotFoundException",
                f"Key '{KEY_ARN_PREFIX}key/{missing}' does not exist",
            ),
            ("mariadb", "NotFoundException", "Invalid keyId 'mariadb'"),
            (
                f"arn:aws:kms:eu-west-1:{ACCOUNT}:alias/mariadb",
                "NotFoundException",
                "Invalid arn eu-west-1",
            ),
            (
                "arn:aws:kms:us-east-1:999999999999:alias/mariadb",
                "NotFoundException",
                "does not exist",
            ),
            ("arn:aws:kms:x", "InvalidArnException", "Invalid arn"),
        ):
            for call in (self.kms.describe_key, self.kms.generate_data_key):
                more = {} if call == self.kms.describe_key else {"KeySpec": "AES_128"}
                self.assert_error(400, code, message, call, KeyId=name, **more)

    def test_a_key_must_be_named(self):
        kms = self.aws.client("kms", parameter_validation=False)
        message = (
            "1 validation error detected: Value at 'keyId' failed to satisfy constraint: Member "
            "must not be null"
        )
        self.assert_error(400, "ValidationException", message, kms.describe_key)

    def test_operations_on_the_key_itself_take_no_alias(self):
        for call in (self.kms.enable_key, self.kms.disable_key, self.kms.get_key_policy):
            message = "Invalid keyId 'alias/mariadb'"
            self.assert_error(400, "NotFoundException", message, call, KeyId="alias/mariadb")


class Management(Case):
    def test_a_new_key_is_described_as_made(self):
        made = self.kms.create_key(Description="for a test")["KeyMetadata"]
        self.assertEqual(made, self.kms.describe_key(KeyId=made["KeyId"])["KeyMetadata"])
        self.assertEqual(made["Description"], "for a test")
        self.assertEqual(made["KeyState"], "Enabled")
        self.assertTrue(made["Enabled"])
        self.assertEqual(made["KeyUsage"], "ENCRYPT_DECRYPT")
        self.assertEqual(made["AWSAccountId"], ACCOUNT)
        self.assertAlmostEqual(made["CreationDate"].timestamp(), time.time(), delta=30)
        self.kms.create_alias(AliasName="alias/another", TargetKeyId=made["KeyId"])
        found = self.kms.describe_key(KeyId="alias/another")["KeyMetadata"]
        self.assertEqual(found["KeyId"], made["KeyId"])

    def test_keys_that_are_not_symmetric_are_refused(self):
        for asked in ({"KeySpec": "RSA_2048"}, {"KeyUsage": "SIGN_VERIFY"}, {"Origin": "EXTERNAL"}):
            self.assert_error(
                400, "SerializationException", "unknown variant", self.kms.create_key, **asked
            )

    def test_aliases_are_listed_all_or_of_one_key(self):
        first, second = self.key_id(), self.kms.create_key()["KeyMetadata"]["KeyId"]
        self.kms.create_alias(AliasName="alias/team/second_key-2", TargetKeyId=second)
        listed = self.kms.list_aliases()
        self.assertFalse(listed["Truncated"])
        aliases = {alias["AliasName"]: alias["TargetKeyId"] for alias in listed["Aliases"]}
        self.assertEqual(
            aliases, {"alias/mariadb": first, "alias/team/second_key-2": second}
        )
        [alias] = self.kms.list_aliases(KeyId=second)["Aliases"]
        self.assertEqual(alias["AliasArn"], KEY_ARN_PREFIX + "alias/team/second_key-2")

    def test_an_alias_is_made_once_and_well_formed(self):
        message = f"An alias with the name {KEY_ARN_PREFIX}alias/mariadb already exists"
        key_id = self.key_id()
        create = self.kms.create_alias
        self.assert_error(
            400,
            "AlreadyExistsException",
            message,
            create,
            AliasName="alias/mariadb",
            TargetKeyId=key_id,
        )
        for name in ("mariadb", "alias/", "alias/aws/rds", "alias/a b", "alias/ä"):
            self.assert_error(
                400, "InvalidAliasNameException", name, create, AliasName=name, TargetKeyId=key_id
            )

    def test_a_disabled_key_refuses_until_enabled(self):
        key_id = self.key_id()
        blob = self.kms.encrypt(KeyId=key_id, Plaintext=b"x")["CiphertextBlob"]
        self.kms.disable_key(KeyId=key_id)
        self.assertEqual(self.kms.describe_key(KeyId=key_id)["KeyMetadata"]["KeyState"], "Disabled")
        message = KEY_ARN_PREFIX + f"key/{key_id} is disabled."
        for call, parameters in (
            (self.kms.encrypt, {"KeyId": key_id, "Plaintext": b"x"}),
            (self.kms.decrypt, {"CiphertextBlob": blob}),
            (self.kms.generate_data_key, {"KeyId": key_id, "KeySpec": "AES_128"}),
            (
                self.kms.generate_data_key_without_plaintext,
                {"KeyId": key_id, "KeySpec": "AES_128"},
            ),
            (self.kms.re_encrypt, {"CiphertextBlob": blob, "DestinationKeyId": key_id}),
        ):
            self.assert_error(400, "DisabledException", message, call, **parameters)
        self.aws.stop()
        self.aws.serve()
        kms = self.aws.client("kms")
        self.assert_error(400, "DisabledException", message, kms.decrypt, CiphertextBlob=blob)
        kms.enable_key(KeyId=key_id)
        self.assertEqual(kms.decrypt(CiphertextBlob=blob)["Plaintext"], b"x")

    def test_a_switched_key_stays_as_it_was_until_the_change_has_its_effect(self):
        key_id = self.key_id()
        blob = self.kms.encrypt(KeyId=key_id, Plaintext=b"x")["CiphertextBlob"]
        self.aws.stop()
        self.aws.serve("--key-state-delay-milliseconds", "60000")
        kms = self.aws.client("kms")
        state = lambda: kms.describe_key(KeyId=key_id)["KeyMetadata"]["KeyState"]
        kms.disable_key(KeyId=key_id)
        self.assertEqual(state(), "Enabled")
        self.assertEqual(kms.decrypt(CiphertextBlob=blob)["Plaintext"], b"x")
        self.aws.run("clock", "--offset-seconds", "60")
        self.assertEqual(state(), "Disabled")
        self.assert_error(
            400, "DisabledException", "is disabled.", kms.decrypt, CiphertextBlob=blob
        )
        kms.enable_key(KeyId=key_id)
        self.assertEqual(state(), "Disabled")
        self.aws.run("clock", "--offset-seconds", "120")
        self.assertEqual(state(), "Enabled")
        # One that takes the other back has nothing to wait for.
        kms.disable_key(KeyId=key_id)
        kms.enable_key(KeyId=key_id)
        self.assertEqual(kms.decrypt(CiphertextBlob=blob)["Plaintext"], b"x")
        self.aws.run("clock", "--offset-seconds", "180")
        self.assertEqual(state(), "Enabled")

    def test_a_key_to_be_deleted_refuses_until_that_is_cancelled(self):
        key_id = self.key_id()
        blob = self.kms.encrypt(KeyId=key_id, Plaintext=b"x")["CiphertextBlob"]
        scheduled = self.kms.schedule_key_deletion(KeyId=key_id, PendingWindowInDays=7)
        self.assertEqual(scheduled["KeyState"], "PendingDeletion")
        message = KEY_ARN_PREFIX + f"key/{key_id} is pending deletion."
        for call, parameters in (
            (self.kms.decrypt, {"CiphertextBlob": blob}),
            (self.kms.enable_key, {"KeyId": key_id}),
            (self.kms.schedule_key_deletion, {"KeyId": key_id}),
        ):
            self.assert_error(400, "KMSInvalidStateException", message, call, **parameters)
        self.kms.cancel_key_deletion(KeyId=key_id)
        self.assert_error(
            400, "DisabledException", "is disabled.", self.kms.decrypt, CiphertextBlob=blob
        )
        self.assert_error(
            400,
            "KMSInvalidStateException",
            "is not pending deletion.",
            self.kms.cancel_key_deletion,
            KeyId=key_id,
        )

    def test_a_deletion_window_has_7_to_30_days(self):
        kms = self.aws.client("kms", parameter_validation=False)
        for days in (6, 31):
            self.assert_error(
                400,
                "ValidationException",
                f"Value '{days}' at 'pendingWindowInDays'",
                kms.schedule_key_deletion,
                KeyId=self.key_id(),
                PendingWindowInDays=days,
            )

    def test_a_key_policy_comes_back_as_it_was_put(self):
        key_id = self.key_id()
        default = json.loads(self.kms.get_key_policy(KeyId=key_id)["Policy"])
        self.assertEqual(
            default["Statement"][0]["Principal"], {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
        )
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow("kms:*")]}, indent=3)
        self.kms.put_key_policy(KeyId=key_id, PolicyName="default", Policy=policy)
        self.assertEqual(self.kms.get_key_policy(KeyId=key_id)["Policy"], policy)
        self.assert_error(
            400,
            "NotFoundException",
            "No such policy exists",
            self.kms.get_key_policy,
            KeyId=key_id,
            PolicyName="other",
        )

    def test_a_malformed_policy_is_refused(self):
        key_id = self.key_id()
        nobody = f"arn:aws:iam::{ACCOUNT}:user/nobody"
        dates = {"Condition": {"DateLessThan": {"aws:CurrentTime": "2030-01-01"}}}
        for policy, message in (
            ("{", "Syntax errors in policy"),
            (json.dumps({"Statement": [allow("kms:*", nobody)]}), "invalid principals"),
            (json.dumps({"Statement": [allow("kms:*", **dates)]}), "aws:currenttime"),
            (
                json.dumps({"Statement": [allow("kms:Decrypt")]}),
                "The new key policy will not allow you to update the key policy in the future.",
            ),
        ):
            self.assert_error(
                400,
                "MalformedPolicyDocumentException",
                message,
                self.kms.put_key_policy,
                KeyId=key_id,
                Policy=policy,
            )
            self.assert_error(
                400,
                "MalformedPolicyDocumentException",
                message,
                self.kms.create_key,
                Policy=policy,
            )

    def test_the_lockout_check_can_be_bypassed_and_then_locks_out(self):
        key_id = self.key_id()
        policy = json.dumps({"Statement": [allow("kms:Decrypt")]})
        self.kms.put_key_policy(
            KeyId=key_id, Policy=policy, BypassPolicyLockoutSafetyCheck=True
        )
        self.assert_error(
            400,
            "AccessDeniedException",
            "because no resource-based policy allows the kms:PutKeyPolicy action",
            self.kms.put_key_policy,
            KeyId=key_id,
            Policy=policy,
        )


class Blobs(Case):
    def test_blobs_are_opaque_and_differ_each_time(self):
        blobs = {
            base64.b64encode(
                self.kms.encrypt(KeyId="alias/mariadb", Plaintext=b"x")["CiphertextBlob"]
            )
            for _ in range(3)
        }
        self.assertEqual(len(blobs), 3)


if __name__ == "__main__":
    unittest.main()
