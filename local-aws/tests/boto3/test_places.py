"""Keys of other regions and other accounts, and calls that are to change nothing."""

import unittest

from support import ACCOUNT, REGION, Case, allow

OTHER_REGION = "eu-west-1"
OTHER_ACCOUNT = "444455556666"
USER = f"arn:aws:iam::{ACCOUNT}:user/"


class Places(Case):
    def key(self, *arguments):
        """Makes a key; its ARN."""
        return self.aws.run("key", *arguments).strip()

    def policy(self, *statements):
        return self.aws.write("policy.json", {"Version": "2012-10-17", "Statement": statements})

    def wrap(self, kms, key_id):
        return kms.encrypt(KeyId=key_id, Plaintext=b"data key")["CiphertextBlob"]


class Regions(Places):
    def setUp(self):
        super().setUp()
        self.arn = self.key("--region", OTHER_REGION, "--alias", "alias/mariadb")
        self.there = self.aws.client("kms", region=OTHER_REGION)

    def test_an_alias_means_the_key_of_the_region_that_is_called(self):
        self.assertEqual(self.arn.split(":")[3], OTHER_REGION)
        for kms, region in (self.kms, REGION), (self.there, OTHER_REGION):
            metadata = kms.describe_key(KeyId="alias/mariadb")["KeyMetadata"]
            self.assertEqual(metadata["Arn"].split(":")[3], region)
            self.assertEqual([alias["AliasName"] for alias in kms.list_aliases()["Aliases"]], ["alias/mariadb"])
        self.assertEqual(self.there.describe_key(KeyId=self.arn)["KeyMetadata"]["Arn"], self.arn)

    def test_a_key_of_another_region_is_not_found(self):
        for call in self.kms.describe_key, self.kms.enable_key:
            self.assert_error(400, "NotFoundException", f"Invalid arn {OTHER_REGION}", call, KeyId=self.arn)
        key_id = self.arn.split("/")[1]
        self.assert_error(400, "NotFoundException", "does not exist", self.kms.describe_key, KeyId=key_id)

    def test_what_was_encrypted_in_another_region_is_refused(self):
        blob = self.wrap(self.there, "alias/mariadb")
        self.assertEqual(self.there.decrypt(CiphertextBlob=blob)["Plaintext"], b"data key")
        message = "does not exist in this region"
        self.assert_error(400, "AccessDeniedException", message, self.kms.decrypt, CiphertextBlob=blob)
        self.assert_error(
            400,
            "AccessDeniedException",
            message,
            self.kms.re_encrypt,
            CiphertextBlob=blob,
            DestinationKeyId="alias/mariadb",
        )

    def test_a_key_is_made_in_the_region_that_is_called(self):
        arn = self.there.create_key()["KeyMetadata"]["Arn"]
        self.assertEqual(arn.split(":")[3], OTHER_REGION)

    def test_a_region_without_a_key_is_none(self):
        elsewhere = self.aws.client("kms", region="eu-west-2")
        self.assert_error(
            400, "InvalidSignatureException", "valid region", elsewhere.describe_key, KeyId="alias/mariadb"
        )

    def test_the_call_log_names_the_region(self):
        self.there.describe_key(KeyId=self.arn)
        self.assertEqual(self.aws.records()[-1]["awsRegion"], OTHER_REGION)


class Accounts(Places):
    def setUp(self):
        super().setUp()
        policy = self.policy(allow("kms:*"))
        self.arn = self.key("--account", OTHER_ACCOUNT, "--alias", "alias/theirs", "--policy", policy)

    def kms_of(self, name, *statements):
        """KMS as a user with these statements as its policy."""
        policy = self.policy(*({"Effect": "Allow", "Resource": "*", **more} for more in statements))
        self.aws.run("user", name, "--policy", policy)
        return self.aws.client("kms", self.aws.long_term(name))

    def test_a_key_is_used_by_its_arn_or_that_of_its_alias(self):
        self.assertEqual(self.arn.split(":")[4], OTHER_ACCOUNT)
        alias = f"arn:aws:kms:{REGION}:{OTHER_ACCOUNT}:alias/theirs"
        for key_id in self.arn, alias:
            metadata = self.kms.describe_key(KeyId=key_id)["KeyMetadata"]
            self.assertEqual((metadata["Arn"], metadata["AWSAccountId"]), (self.arn, OTHER_ACCOUNT))
        for key_id in self.arn.split("/")[1], "alias/theirs":
            self.assert_error(400, "NotFoundException", "", self.kms.describe_key, KeyId=key_id)

    def test_what_was_wrapped_at_home_is_wrapped_there(self):
        blob = self.wrap(self.kms, "alias/mariadb")
        answer = self.kms.re_encrypt(CiphertextBlob=blob, DestinationKeyId=self.arn)
        self.assertEqual(answer["KeyId"], self.arn)
        self.assertEqual(self.kms.decrypt(CiphertextBlob=answer["CiphertextBlob"])["Plaintext"], b"data key")

    def test_the_callers_own_policy_must_allow_it_too(self):
        kms = self.kms_of("reader", {"Action": "kms:DescribeKey"})
        kms.describe_key(KeyId=self.arn)
        self.assert_error(
            400,
            "AccessDeniedException",
            "because no identity-based policy allows the kms:Encrypt action",
            kms.encrypt,
            KeyId=self.arn,
            Plaintext=b"x",
        )

    def test_that_the_keys_policy_names_the_user_is_not_enough(self):
        kms = self.kms_of("named", {"Action": "kms:DescribeKey"})
        by_name = self.policy(allow("kms:*", USER + "named"))
        theirs = self.key("--account", OTHER_ACCOUNT, "--policy", by_name)
        ours = self.key("--policy", by_name)
        self.wrap(kms, ours)
        self.assert_error(
            400, "AccessDeniedException", "identity-based", kms.encrypt, KeyId=theirs, Plaintext=b"x"
        )

    def test_the_keys_policy_must_allow_it(self):
        theirs = self.key("--account", OTHER_ACCOUNT)
        self.assert_error(
            400,
            "AccessDeniedException",
            "because no resource-based policy allows the kms:DescribeKey action",
            self.kms.describe_key,
            KeyId=theirs,
        )

    def test_nobody_administers_a_key_of_another_account(self):
        for call in self.kms.disable_key, self.kms.get_key_policy, self.kms.schedule_key_deletion:
            self.assert_error(400, "NotFoundException", "does not exist", call, KeyId=self.arn)


class DryRun(Places):
    def refused(self, call, **parameters):
        self.assert_error(412, "DryRunOperationException", "DryRun", call, DryRun=True, **parameters)

    def test_what_would_succeed_is_said_and_not_done(self):
        blob = self.wrap(self.kms, "alias/mariadb")
        self.refused(self.kms.encrypt, KeyId="alias/mariadb", Plaintext=b"x")
        self.refused(self.kms.decrypt, CiphertextBlob=blob)
        self.refused(self.kms.re_encrypt, CiphertextBlob=blob, DestinationKeyId="alias/mariadb")
        for call in self.kms.generate_data_key, self.kms.generate_data_key_without_plaintext:
            self.refused(call, KeyId="alias/mariadb", KeySpec="AES_256")

    def test_what_would_fail_fails(self):
        blob = self.wrap(self.kms, "alias/mariadb")
        self.kms.disable_key(KeyId=self.key_id())
        for call, parameters in (
            (self.kms.encrypt, {"KeyId": "alias/mariadb", "Plaintext": b"x"}),
            (self.kms.decrypt, {"CiphertextBlob": blob}),
        ):
            self.assert_error(400, "DisabledException", "", call, DryRun=True, **parameters)


if __name__ == "__main__":
    unittest.main()
