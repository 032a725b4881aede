"""Who may do what: key policies, identity policies, conditions."""

import unittest

from support import ACCOUNT, KEY_ARN_PREFIX, ROOT, Case, allow, as_credentials

MFA = {"Bool": {"aws:MultiFactorAuthPresent": "true"}}
USER = f"arn:aws:iam::{ACCOUNT}:user/"


class Policies(Case):
    def denied(self, kms, user, reason, action="kms:Encrypt", key_id="alias/mariadb"):
        """That `user` may not encrypt, in AWS's words."""
        arn = KEY_ARN_PREFIX + f"key/{self.key_id()}"
        who = user if user.startswith("arn:") else USER + user
        self.assert_error(
            400,
            "AccessDeniedException",
            f"User: {who} is not authorized to perform: {action} on resource: {arn} {reason}",
            kms.encrypt,
            KeyId=key_id,
            Plaintext=b"x",
        )

    def encrypt(self, kms, **more):
        return kms.encrypt(KeyId="alias/mariadb", Plaintext=b"x", **more)["CiphertextBlob"]


NOT_BY_KEY = "because no resource-based policy allows the kms:Encrypt action"
NOT_BY_IDENTITY = "because no identity-based policy allows the kms:Encrypt action"
DENIED_BY_KEY = "with an explicit deny in a resource-based policy"
DENIED_BY_IDENTITY = "with an explicit deny in an identity-based policy"


class Mfa(Policies):
    def setUp(self):
        super().setUp()
        self.plain = self.kms
        self.with_mfa = self.aws.client("kms", self.aws.session())
        self.without_mfa = self.aws.client("kms", self.aws.session(mfa=False))

    def test_bool_wants_a_session_with_a_code(self):
        self.put_key_policy(allow("kms:*", Condition=MFA))
        self.encrypt(self.with_mfa)
        self.denied(self.plain, "mariadb", NOT_BY_KEY)
        self.denied(self.without_mfa, "mariadb", NOT_BY_KEY)

    def test_bool_if_exists_lets_long_term_keys_pass(self):
        condition = {"BoolIfExists": {"aws:MultiFactorAuthPresent": "true"}}
        self.put_key_policy(allow("kms:*", Condition=condition))
        self.encrypt(self.with_mfa)
        self.encrypt(self.plain)
        self.denied(self.without_mfa, "mariadb", NOT_BY_KEY)

    def test_denying_with_bool_if_exists_false_stops_both(self):
        deny = allow("kms:Encrypt", "*", Effect="Deny")
        deny["Condition"] = {"BoolIfExists": {"aws:MultiFactorAuthPresent": "false"}}
        self.put_key_policy(allow("kms:*"), deny)
        self.encrypt(self.with_mfa)
        self.denied(self.plain, "mariadb", DENIED_BY_KEY)
        self.denied(self.without_mfa, "mariadb", DENIED_BY_KEY)

    def test_null_tells_long_term_keys_apart(self):
        condition = {"Null": {"aws:MultiFactorAuthPresent": "false"}}
        self.put_key_policy(allow("kms:*", Condition=condition))
        self.encrypt(self.with_mfa)
        self.encrypt(self.without_mfa)
        self.denied(self.plain, "mariadb", NOT_BY_KEY)

    def test_a_role_session_has_no_mfa_even_if_a_code_was_given(self):
        trust = {"Effect": "Allow", "Principal": {"AWS": ROOT}, "Action": "sts:AssumeRole"}
        path = self.aws.write("trust.json", {"Statement": trust})
        self.aws.run("role", "db", "--trust", path)
        response = self.sts.assume_role(
            RoleArn=f"arn:aws:iam::{ACCOUNT}:role/db",
            RoleSessionName="db1",
            SerialNumber=self.aws.serial_number(),
            TokenCode=self.aws.code(steps=1),
        )
        kms = self.aws.client("kms", as_credentials(response))
        self.encrypt(kms)
        self.put_key_policy(allow("kms:*", Condition=MFA))
        self.denied(kms, f"arn:aws:sts::{ACCOUNT}:assumed-role/db/db1", NOT_BY_KEY)


class Principals(Policies):
    def setUp(self):
        super().setUp()
        self.aws.run("user", "other")
        self.other = self.aws.client("kms", self.aws.long_term("other"))

    def test_a_user_by_name(self):
        self.put_key_policy(allow("kms:*", USER + "other"))
        self.encrypt(self.other)
        self.denied(self.kms, "mariadb", NOT_BY_KEY)

    def test_everyone(self):
        self.put_key_policy(allow("kms:*", "*"))
        self.encrypt(self.other)
        self.encrypt(self.kms)

    def test_the_account_by_number(self):
        self.put_key_policy(allow("kms:*", ACCOUNT))
        self.encrypt(self.other)

    def test_a_role_and_a_session_of_it(self):
        trust = {"Effect": "Allow", "Principal": {"AWS": ROOT}, "Action": "sts:AssumeRole"}
        path = self.aws.write("trust.json", {"Statement": trust})
        self.aws.run("role", "db", "--trust", path)

        def session(name):
            arn = f"arn:aws:iam::{ACCOUNT}:role/db"
            response = self.sts.assume_role(RoleArn=arn, RoleSessionName=name)
            return self.aws.client("kms", as_credentials(response))

        first, second = session("first"), session("second")
        self.put_key_policy(allow("kms:*", f"arn:aws:iam::{ACCOUNT}:role/db"))
        self.encrypt(first)
        self.encrypt(second)
        self.put_key_policy(allow("kms:*", f"arn:aws:sts::{ACCOUNT}:assumed-role/db/first"))
        self.encrypt(first)
        self.denied(second, f"arn:aws:sts::{ACCOUNT}:assumed-role/db/second", NOT_BY_KEY)
        self.denied(self.other, "other", NOT_BY_KEY)

    def test_another_account_is_not_ours(self):
        self.put_key_policy(allow("kms:*", "arn:aws:iam::999999999999:root"))
        self.denied(self.other, "other", NOT_BY_KEY)


class Actions(Policies):
    def test_only_the_allowed_actions(self):
        self.put_key_policy(allow(["kms:Decrypt", "kms:GenerateDataKey*"]))
        self.denied(self.kms, "mariadb", NOT_BY_KEY)
        key = self.kms.generate_data_key(KeyId="alias/mariadb", KeySpec="AES_128")
        self.kms.generate_data_key_without_plaintext(KeyId="alias/mariadb", KeySpec="AES_128")
        self.kms.decrypt(CiphertextBlob=key["CiphertextBlob"])

    def test_re_encryption_needs_from_and_to(self):
        blob = self.encrypt(self.kms)
        call = {"CiphertextBlob": blob, "DestinationKeyId": "alias/mariadb"}
        for action, missing in (("From", "To"), ("To", "From")):
            self.put_key_policy(allow(f"kms:ReEncrypt{action}"))
            self.assert_error(
                400,
                "AccessDeniedException",
                f"to perform: kms:ReEncrypt{missing} on resource",
                self.kms.re_encrypt,
                **call,
            )
        self.put_key_policy(allow("kms:ReEncrypt*"))
        self.kms.re_encrypt(**call)

    def test_every_operation_asks_for_its_own_action(self):
        key_id = self.key_id()
        blob = self.encrypt(self.kms)
        self.aws.run("user", "other")
        kms = self.aws.client("kms", self.aws.long_term("other"))
        self.put_key_policy()
        of_key = {"KeyId": key_id}
        for call, parameters in (
            (kms.cancel_key_deletion, of_key),
            (kms.create_alias, {"AliasName": "alias/x", "TargetKeyId": key_id}),
            (kms.decrypt, {"CiphertextBlob": blob}),
            (kms.describe_key, of_key),
            (kms.disable_key, of_key),
            (kms.enable_key, of_key),
            (kms.encrypt, {"KeyId": key_id, "Plaintext": b"x"}),
            (kms.generate_data_key, {"KeyId": key_id, "KeySpec": "AES_128"}),
            (kms.generate_data_key_without_plaintext, {"KeyId": key_id, "KeySpec": "AES_128"}),
            (kms.get_key_policy, of_key),
            (kms.put_key_policy, {"KeyId": key_id, "Policy": "{}"}),
            (kms.schedule_key_deletion, of_key),
        ):
            name = "".join(word.title() for word in call.__name__.split("_"))
            self.assert_error(
                400,
                "AccessDeniedException",
                f"User: {USER}other is not authorized to perform: kms:{name} on resource: "
                f"{KEY_ARN_PREFIX}key/{key_id} because no resource-based policy allows the "
                f"kms:{name} action",
                call,
                **parameters,
            )


class IdentityPolicies(Policies):
    def user(self, name, *statements):
        path = self.aws.write(f"{name}.json", {"Version": "2012-10-17", "Statement": statements})
        self.aws.run("user", name, "--policy", path)
        return self.aws.client("kms", self.aws.long_term(name))

    def test_a_key_that_leaves_it_to_the_account_needs_an_identity_policy(self):
        resource = {"Resource": KEY_ARN_PREFIX + "key/*"}
        kms = self.user("narrow", {"Effect": "Allow", "Action": "kms:Decrypt", **resource})
        blob = self.encrypt(self.kms)
        self.assertEqual(kms.decrypt(CiphertextBlob=blob)["Plaintext"], b"x")
        self.denied(kms, "narrow", NOT_BY_IDENTITY)

    def test_a_key_that_names_the_user_needs_none(self):
        kms = self.user("narrow", {"Effect": "Allow", "Action": "s3:*", "Resource": "*"})
        self.denied(kms, "narrow", NOT_BY_IDENTITY)
        self.put_key_policy(allow("kms:Encrypt", USER + "narrow"))
        self.encrypt(kms)

    def test_an_explicit_denial_wins(self):
        kms = self.user("barred", {"Effect": "Deny", "Action": "kms:En*", "Resource": "*"})
        self.put_key_policy(allow("kms:*", "*"))
        self.denied(kms, "barred", DENIED_BY_IDENTITY)

    def test_what_has_no_key_is_up_to_the_identity_policy(self):
        kms = self.user("narrow", {"Effect": "Allow", "Action": "kms:ListAliases", "Resource": "*"})
        kms.list_aliases()
        self.assert_error(
            400,
            "AccessDeniedException",
            f"User: {USER}narrow is not authorized to perform: kms:CreateKey on resource: * "
            "because no identity-based policy allows the kms:CreateKey action",
            kms.create_key,
        )

    def test_mfa_by_identity_policy(self):
        kms = self.user(
            "operator",
            {"Effect": "Allow", "Action": "kms:*", "Resource": "*", "Condition": MFA},
        )
        self.denied(kms, "operator", NOT_BY_IDENTITY)
        self.encrypt(self.aws.client("kms", self.aws.session("operator")))


class OtherConditions(Policies):
    def test_the_source_address(self):
        for networks, allowed in ((["127.0.0.0/8"], True), (["10.0.0.0/8", "::1/128"], False)):
            condition = {"IpAddress": {"aws:SourceIp": networks}}
            self.put_key_policy(allow("kms:*", Condition=condition))
            if allowed:
                self.encrypt(self.kms)
            else:
                self.denied(self.kms, "mariadb", NOT_BY_KEY)
            condition = {"NotIpAddress": {"aws:SourceIp": networks}}
            self.put_key_policy(allow("kms:*", Condition=condition))
            if allowed:
                self.denied(self.kms, "mariadb", NOT_BY_KEY)
            else:
                self.encrypt(self.kms)

    def test_the_encryption_context(self):
        condition = {"StringEquals": {"kms:EncryptionContext:host": "db1"}}
        self.put_key_policy(allow("kms:*", Condition=condition))
        blob = self.encrypt(self.kms, EncryptionContext={"host": "db1"})
        self.kms.decrypt(CiphertextBlob=blob, EncryptionContext={"host": "db1"})
        self.denied(self.kms, "mariadb", NOT_BY_KEY)

    def test_the_principal_arn(self):
        condition = {"StringLike": {"aws:PrincipalArn": USER + "maria*"}}
        self.put_key_policy(allow("kms:*", Condition=condition))
        self.encrypt(self.kms)
        self.aws.run("user", "other")
        self.denied(self.aws.client("kms", self.aws.long_term("other")), "other", NOT_BY_KEY)


if __name__ == "__main__":
    unittest.main()
