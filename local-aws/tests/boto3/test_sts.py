"""STS: sessions, MFA codes, roles."""

import concurrent.futures
import datetime
import unittest

from support import ACCOUNT, Case, as_credentials

WRONG_CODE = "MultiFactorAuthentication failed with invalid MFA one time pass code. "
WRONG_SERIAL = (
    "MultiFactorAuthentication failed, unable to validate MFA code.  Please verify your MFA "
    "serial number is valid and associated with this user."
)


class GetSessionToken(Case):
    def get(self, **parameters):
        return self.sts.get_session_token(**parameters)

    def with_mfa(self, code):
        return {"SerialNumber": self.aws.serial_number(), "TokenCode": code}

    def test_a_code_of_oathtool_gives_a_session_of_the_asked_length(self):
        before = datetime.datetime.now(datetime.timezone.utc)
        response = self.get(DurationSeconds=900, **self.with_mfa(self.aws.code()))
        lasts = response["Credentials"]["Expiration"] - before
        self.assertAlmostEqual(lasts.total_seconds(), 900, delta=30)
        self.assertRegex(response["Credentials"]["AccessKeyId"], "^ASIA[A-Z2-7]{16}$")
        self.assertRegex(response["ResponseMetadata"]["RequestId"], "^[0-9a-f-]{36}$")
        sts = self.aws.client("sts", as_credentials(response))
        self.assertEqual(
            sts.get_caller_identity()["Arn"], f"arn:aws:iam::{ACCOUNT}:user/mariadb"
        )

    def test_without_a_duration_it_is_twelve_hours(self):
        before = datetime.datetime.now(datetime.timezone.utc)
        lasts = self.get()["Credentials"]["Expiration"] - before
        self.assertAlmostEqual(lasts.total_seconds(), 43200, delta=30)

    def test_a_code_is_taken_only_once(self):
        mfa = self.with_mfa(self.aws.code())
        self.get(**mfa)
        self.assert_error(403, "AccessDenied", WRONG_CODE, self.get, **mfa)

    def test_of_many_calls_with_one_code_one_gets_the_session(self):
        mfa = self.with_mfa(self.aws.code())

        def attempt(_):
            try:
                self.get(**mfa)
                return True
            except self.sts.exceptions.ClientError:
                return False

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertEqual(sum(pool.map(attempt, range(16))), 1)

    def test_the_codes_one_step_off_are_taken_in_order_only(self):
        before, now, after = (self.aws.code(steps=steps) for steps in (-1, 0, 1))
        self.get(**self.with_mfa(now))
        self.assert_error(403, "AccessDenied", WRONG_CODE, self.get, **self.with_mfa(before))
        self.get(**self.with_mfa(after))
        self.assert_error(403, "AccessDenied", WRONG_CODE, self.get, **self.with_mfa(now))

    def test_codes_far_off_are_refused(self):
        for steps in (-4, 4):
            mfa = self.with_mfa(self.aws.code(steps=steps))
            self.assert_error(403, "AccessDenied", WRONG_CODE, self.get, **mfa)

    def test_a_wrong_serial_number_is_told_from_a_wrong_code(self):
        wrong = {"SerialNumber": f"arn:aws:iam::{ACCOUNT}:mfa/other", "TokenCode": "000000"}
        self.assert_error(403, "AccessDenied", WRONG_SERIAL, self.get, **wrong)

    def test_the_device_of_another_user_does_not_count(self):
        self.aws.run("user", "other")
        mfa = {
            "SerialNumber": self.aws.serial_number("other"),
            "TokenCode": self.aws.code("other"),
        }
        self.assert_error(403, "AccessDenied", WRONG_SERIAL, self.get, **mfa)

    def test_a_serial_number_without_a_code_is_refused(self):
        message = "must provide both MFA serial number and one time pass code"
        serial_number = self.aws.serial_number()
        self.assert_error(403, "AccessDenied", message, self.get, SerialNumber=serial_number)

    def test_parameters_outside_their_constraints_are_named_all_at_once(self):
        sts = self.aws.client("sts", parameter_validation=False)
        response = self.assert_error(
            400,
            "ValidationError",
            "3 validation errors detected: Value '899' at 'durationSeconds' failed to satisfy "
            "constraint: Member must have value greater than or equal to 900; ",
            sts.get_session_token,
            DurationSeconds=899,
            SerialNumber="arn:aws:iam::1:mfa/a b",
            TokenCode="12a456",
        )
        self.assertIn("regular expression pattern: [\\d]*", response["Error"]["Message"])
        self.assertIn("regular expression pattern: [\\w+=/:,.@-]*", response["Error"]["Message"])
        for seconds, word in ((129601, "less"), (0, "greater")):
            message = f"Member must have value {word} than or equal to"
            self.assert_error(
                400, "ValidationError", message, sts.get_session_token, DurationSeconds=seconds
            )
        self.assertNotIn("12a456", self.aws.read("cloudtrail.jsonl"))

    def test_a_session_cannot_get_another_session(self):
        sts = self.aws.client("sts", self.aws.session())
        message = "Cannot call GetSessionToken with session credentials"
        self.assert_error(403, "AccessDenied", message, sts.get_session_token)

    def test_a_spent_code_stays_spent_after_a_restart(self):
        mfa = self.with_mfa(self.aws.code())
        self.get(**mfa)
        self.assertEqual(self.aws.stop(), 0)
        self.aws.serve()
        sts = self.aws.client("sts")
        self.assert_error(403, "AccessDenied", WRONG_CODE, sts.get_session_token, **mfa)

    def test_a_session_lives_on_after_a_restart(self):
        session = self.aws.session()
        self.aws.stop()
        self.aws.serve()
        self.aws.client("sts", session).get_caller_identity()


class SessionLifetime(Case):
    serve_arguments = ("--session-lifetime", "300")

    def test_a_session_ends_by_its_lifetime_in_both_services(self):
        session = self.aws.session()
        sts, kms = self.aws.client("sts", session), self.aws.client("kms", session)
        self.aws.run("clock", "--offset-seconds", "240")
        sts.get_caller_identity()
        kms.list_aliases()
        self.aws.run("clock", "--offset-seconds", "301")
        message = "The security token included in the request is expired"
        self.assert_error(403, "ExpiredToken", message, sts.get_caller_identity)
        self.assert_error(400, "ExpiredTokenException", message, kms.list_aliases)

    def test_the_answer_tells_the_lifetime_and_not_what_was_asked_for(self):
        before = datetime.datetime.now(datetime.timezone.utc)
        response = self.sts.get_session_token(DurationSeconds=3600)
        lasts = response["Credentials"]["Expiration"] - before
        self.assertAlmostEqual(lasts.total_seconds(), 300, delta=30)


class AssumeRole(Case):
    """Role `admin` trusts the account if an MFA code is given; role `named` trusts one user."""

    def setUp(self):
        super().setUp()
        self.aws.run("user", "other")
        trust = {
            "Effect": "Allow",
            "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"},
            "Action": "sts:AssumeRole",
            "Condition": {"Bool": {"aws:MultiFactorAuthPresent": "true"}},
        }
        self.add_role("admin", trust)
        named = dict(trust, Principal={"AWS": f"arn:aws:iam::{ACCOUNT}:user/mariadb"})
        del named["Condition"]
        self.add_role("named", named)

    def add_role(self, name, statement):
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        self.aws.run("role", name, "--trust", self.aws.write(f"{name}.json", policy))

    def assume(self, role, client=None, **parameters):
        return (client or self.sts).assume_role(
            RoleArn=f"arn:aws:iam::{ACCOUNT}:role/{role}",
            **{"RoleSessionName": "db1", **parameters},
        )

    def with_mfa(self):
        return {"SerialNumber": self.aws.serial_number(), "TokenCode": self.aws.code()}

    def denied(self, role, client=None, **parameters):
        user = "other" if client else "mariadb"
        self.assert_error(
            403,
            "AccessDenied",
            f"User: arn:aws:iam::{ACCOUNT}:user/{user} is not authorized to perform: "
            f"sts:AssumeRole on resource: arn:aws:iam::{ACCOUNT}:role/{role}",
            self.assume,
            role,
            client,
            **parameters,
        )

    def test_a_code_with_the_call_satisfies_the_trust_policy(self):
        self.denied("admin")
        response = self.assume("admin", **self.with_mfa())
        arn = f"arn:aws:sts::{ACCOUNT}:assumed-role/admin/db1"
        self.assertEqual(response["AssumedRoleUser"]["Arn"], arn)
        identity = self.aws.client("sts", as_credentials(response)).get_caller_identity()
        self.assertEqual(identity["Arn"], arn)
        self.assertEqual(identity["UserId"], response["AssumedRoleUser"]["AssumedRoleId"])
        self.assertRegex(identity["UserId"], "^AROA[A-Z2-7]{16}:db1$")

    def test_a_session_with_mfa_satisfies_the_trust_policy_and_one_without_does_not(self):
        self.assume("admin", self.aws.client("sts", self.aws.session()))
        without = self.aws.client("sts", self.aws.session(mfa=False))
        with self.assertRaisesRegex(Exception, "AccessDenied"):
            self.assume("admin", without)

    def test_a_code_is_taken_only_once_across_both_operations(self):
        mfa = self.with_mfa()
        self.assume("admin", **mfa)
        self.assert_error(403, "AccessDenied", WRONG_CODE, self.sts.get_session_token, **mfa)

    def test_a_trust_policy_names_who_may(self):
        self.assume("named")
        self.denied("named", self.aws.client("sts", self.aws.long_term("other")))

    def test_an_identity_policy_may_be_needed_too(self):
        policy = {"Statement": {"Effect": "Allow", "Action": "kms:*", "Resource": "*"}}
        self.aws.run("user", "narrow", "--policy", self.aws.write("narrow-policy.json", policy))
        sts = self.aws.client("sts", self.aws.long_term("narrow"))
        mfa = {
            "SerialNumber": self.aws.serial_number("narrow"),
            "TokenCode": self.aws.code("narrow"),
        }
        with self.assertRaisesRegex(Exception, "not authorized to perform: sts:AssumeRole"):
            self.assume("admin", sts, **mfa)

    def test_a_role_that_is_not_there_is_denied(self):
        self.denied("nobody")

    def test_sessions_last_an_hour_at_most_unless_the_role_says_otherwise(self):
        before = datetime.datetime.now(datetime.timezone.utc)
        lasts = self.assume("named")["Credentials"]["Expiration"] - before
        self.assertAlmostEqual(lasts.total_seconds(), 3600, delta=30)
        message = (
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
        )
        self.assert_error(
            400, "ValidationError", message, self.assume, "named", DurationSeconds=3601
        )

    def test_names_and_durations_are_checked(self):
        sts = self.aws.client("sts", parameter_validation=False)
        for parameters, part in (
            ({"RoleSessionName": "a b"}, "pattern: [\\w+=,.@-]*"),
            ({"RoleSessionName": "a"}, "length greater than or equal to 2"),
            ({"DurationSeconds": 899}, "value greater than or equal to 900"),
            ({"DurationSeconds": 43201}, "value less than or equal to 43200"),
        ):
            self.assert_error(
                400, "ValidationError", part, self.assume, "named", sts, **parameters
            )
        self.assert_error(
            400, "ValidationError", "Value at 'roleArn'", sts.assume_role, RoleSessionName="db1"
        )

    def test_what_is_not_done_is_refused_and_not_ignored(self):
        self.assert_error(
            400, "ValidationError", "unknown field `Policy`", self.assume, "named", Policy="{}"
        )

    def test_a_role_session_carries_no_mfa(self):
        """AWS: the credentials of AssumeRole do not include MFA information."""
        response = self.assume("admin", **self.with_mfa())
        self.aws.client("sts", as_credentials(response)).get_caller_identity()
        identity = self.aws.records()[-1]["userIdentity"]
        self.assertEqual(identity["sessionContext"]["attributes"]["mfaAuthenticated"], "false")


class GetCallerIdentity(Case):
    def test_it_tells_who_one_is(self):
        identity = self.sts.get_caller_identity()
        self.assertEqual(identity["Account"], ACCOUNT)
        self.assertEqual(identity["Arn"], f"arn:aws:iam::{ACCOUNT}:user/mariadb")
        self.assertRegex(identity["UserId"], "^AIDA[A-Z2-7]{16}$")

    def test_a_user_added_while_serving_is_known_at_once(self):
        self.aws.run("user", "late")
        sts = self.aws.client("sts", self.aws.long_term("late"))
        self.assertTrue(sts.get_caller_identity()["Arn"].endswith(":user/late"))


if __name__ == "__main__":
    unittest.main()
