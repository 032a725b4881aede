# A KMS key for MariaDB's data keys, and an IAM user who may use it in a session that was opened with an MFA code. In the
# region of the key.
# The same as ../cloudformation.yaml.

variable "name" {
  description = "Name of the user, the key's alias (alias/NAME) and the MFA device."
  type        = string
  default     = "mariadb"
  validation {
    condition     = can(regex("^[A-Za-z][A-Za-z0-9_-]{0,63}$", var.name))
    error_message = "A name has up to 64 letters, digits, _ and -, and begins with a letter."
  }
}

variable "deletion_window_days" {
  description = "How long a deletion of the key can be cancelled, in days, should the key policy ever allow one."
  type        = number
  default     = 30
  validation {
    condition     = var.deletion_window_days >= 7 && var.deletion_window_days <= 30
    error_message = "AWS takes 7 to 30 days."
  }
}

data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}

locals {
  account_arn = "arn:${data.aws_partition.this.partition}:iam::${data.aws_caller_identity.this.account_id}"
  mfa_device  = "${local.account_arn}:mfa/${var.name}"
}

resource "aws_iam_user" "this" {
  name = var.name
}

resource "aws_kms_key" "this" {
  description             = "Wraps the data keys of MariaDB"
  enable_key_rotation     = true
  deletion_window_in_days = var.deletion_window_days
  policy                  = data.aws_iam_policy_document.key.json

  # Without the key, the data is lost.
  lifecycle {
    prevent_destroy = true
  }
}

data "aws_iam_policy_document" "key" {
  statement {
    sid = "Let the account administer the key"
    principals {
      type        = "AWS"
      identifiers = ["${local.account_arn}:root"]
    }
    actions = [
      "kms:DescribeKey",
      "kms:GetKeyPolicy",
      "kms:PutKeyPolicy",
      "kms:EnableKey",
      "kms:DisableKey",
      "kms:EnableKeyRotation",
      "kms:GetKeyRotationStatus",
      "kms:ListResourceTags",
      "kms:TagResource",
      "kms:UntagResource",
      "kms:UpdateKeyDescription",
      "kms:CreateAlias",
      "kms:UpdateAlias",
      "kms:DeleteAlias",
      "kms:CancelKeyDeletion",
    ]
    resources = ["*"]
  }

  statement {
    sid = "Allow use of the key with MFA"
    principals {
      type        = "AWS"
      identifiers = [aws_iam_user.this.arn]
    }
    actions = [
      "kms:Decrypt",
      "kms:GenerateDataKeyWithoutPlaintext",
    ]
    resources = ["*"]
    condition {
      test     = "Bool"
      variable = "aws:MultiFactorAuthPresent"
      values   = ["true"]
    }
  }
}

resource "aws_kms_alias" "this" {
  name          = "alias/${var.name}"
  target_key_id = aws_kms_key.this.key_id
}

resource "aws_iam_user_policy" "this" {
  name   = "${var.name}-kms"
  user   = aws_iam_user.this.name
  policy = data.aws_iam_policy_document.user.json
}

data "aws_iam_policy_document" "user" {
  statement {
    sid = "UseTheKeyWithMfa"
    actions = [
      "kms:Decrypt",
      "kms:GenerateDataKeyWithoutPlaintext",
    ]
    resources = [aws_kms_key.this.arn]
    condition {
      test     = "Bool"
      variable = "aws:MultiFactorAuthPresent"
      values   = ["true"]
    }
  }
}

output "user_name" {
  description = "The user who gets an MFA device and an access key."
  value       = aws_iam_user.this.name
}

output "mfa_device" {
  description = "The MFA device that you create for the user (setup --mfa-device)."
  value       = local.mfa_device
}

output "master_key" {
  description = "The key, by its alias (setup --master-key)."
  value       = aws_kms_alias.this.arn
}

output "key_arn" {
  description = "The key itself, for policies and alarms."
  value       = aws_kms_key.this.arn
}

output "setup_command" {
  description = "Configures a host, once the user has its MFA device."
  value       = "iam-kms-wrapper setup --mfa-device=${local.mfa_device} --master-key=${aws_kms_alias.this.arn}"
}
