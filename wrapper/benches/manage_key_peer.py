#!/usr/bin/env python3
"""Enables or disables a KMS key with an MFA code, by boto3: what kms-manage-key is measured against.

    manage_key_peer.py [--bare] enable|disable CODE SERIAL_NUMBER KEY_ARN

It makes the same calls: a session by GetSessionToken, GetCallerIdentity and DescribeKey, the change,
and DescribeKey until the new state shows. With --bare, the session and the change only.
"""

import sys
import time

import boto3

is_bare = sys.argv[1] == "--bare"
action, token_code, serial_number, key_arn = sys.argv[1 + is_bare :]
region = key_arn.split(":")[3]
answer = boto3.client("sts", region_name=region).get_session_token(
    DurationSeconds=900, SerialNumber=serial_number, TokenCode=token_code
)
credentials = answer["Credentials"]
session = boto3.session.Session(
    aws_access_key_id=credentials["AccessKeyId"],
    aws_secret_access_key=credentials["SecretAccessKey"],
    aws_session_token=credentials["SessionToken"],
    region_name=region,
)
kms = session.client("kms")
change, state = {
    "enable": (kms.enable_key, "Enabled"),
    "disable": (kms.disable_key, "Disabled"),
}[action]
if is_bare:
    change(KeyId=key_arn)
    sys.exit()
caller = session.client("sts").get_caller_identity()["Arn"]
kms.describe_key(KeyId=key_arn)
change(KeyId=key_arn)
while kms.describe_key(KeyId=key_arn)["KeyMetadata"]["KeyState"] != state:
    time.sleep(0.25)
print(f"{key_arn} is {state}: by {caller}")
