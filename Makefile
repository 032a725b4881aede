# What to run: `make demo` shows it, `make test` checks it. Each installs what it needs.

export CARGO_TARGET_DIR := $(if $(CI),$(HOME)/.cache/iam-kms-wrapper/target,$(abspath $(or $(CARGO_TARGET_DIR),target)))
# What is installed is linked against an old C library, so that it runs on every system with that one or a newer one.
# ARCH=aarch64 builds it for the other architecture.
HOST_ARCH := $(shell uname -m)
ARCH := $(HOST_ARCH)
GLIBC := 2.28
TARGET := $(ARCH)-unknown-linux-gnu
BUILT := $(CARGO_TARGET_DIR)/$(TARGET)
DIST := $(CARGO_TARGET_DIR)/dist$(if $(filter-out $(HOST_ARCH),$(ARCH)),-$(ARCH))
BENCH := $(CARGO_TARGET_DIR)/bench
BENCH_PACKAGES := golang-go golang-github-aws-aws-sdk-go-dev golang-github-robfig-config-dev openssl
TOOLS := $(HOME)/.cache/iam-kms-wrapper/tools
CARGO_ZIGBUILD := $(TOOLS)/bin/cargo-zigbuild
CARGO_ZIGBUILD_VERSION := 0.24.1
# Zig, whose linker and C library cargo-zigbuild uses, comes from PyPI.
ZIG := $(TOOLS)/ziglang-0.17.1
# Messages of panics name source files: the same ones for everybody who builds.
ZIG_CARGO := PATH=$(TOOLS)/bin:$$PATH CARGO_ZIGBUILD_PYTHON_PATH=$(ZIG)/bin/python \
	RUSTFLAGS='--remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo' \
	cargo-zigbuild
# Where SOURCE_DATE_EPOCH changes, which `package` sets, crates with C code would be built again. Nothing built has a date.
ZIGBUILD := env -u SOURCE_DATE_EPOCH $(ZIG_CARGO) zigbuild --locked --target $(TARGET).$(GLIBC)
CARGO_DENY := $(TOOLS)/bin/cargo-deny
CARGO_DENY_VERSION := 0.20.2
CARGO_MACHETE := $(TOOLS)/bin/cargo-machete
CARGO_MACHETE_VERSION := 0.9.2
CARGO_ABOUT := $(TOOLS)/bin/cargo-about
CARGO_ABOUT_VERSION := 0.9.3
CARGO_DEB := $(TOOLS)/bin/cargo-deb
CARGO_DEB_VERSION := 3.8.0
CARGO_GENERATE_RPM := $(TOOLS)/bin/cargo-generate-rpm
CARGO_GENERATE_RPM_VERSION := 0.21.1
MDBOOK := $(TOOLS)/bin/mdbook
MDBOOK_VERSION := 0.5.4
CARGO_CYCLONEDX := $(TOOLS)/bin/cargo-cyclonedx
CARGO_CYCLONEDX_VERSION := 0.5.9
CARGO_FUZZ := $(TOOLS)/bin/cargo-fuzz
CARGO_FUZZ_VERSION := 0.13.1
CARGO_MUTANTS := $(TOOLS)/bin/cargo-mutants
CARGO_MUTANTS_VERSION := 27.1.0
MUTANTS_OF := key-files broker-api code-channel aws-key-management-plugin
FUZZ_TARGETS := frames key_server key_names manifest offline_keys ciphers cipher_calls
FUZZ_SECONDS := 60
CHAOS_MINUTES := 10
KEY_SERVERS_SECONDS := 75
MIRI := cargo +nightly miri test --locked --lib
MIRI_TESTS := ffi::crypt:: ffi::tests::set_global keyring::
PREFIX := /usr/local
PLUGIN_DIR := /usr/lib/mysql/plugin
# Debian's releases: the oldest has MariaDB 10.5, the newest are 11.8.
SYSTEMD_PACKAGES := systemd-sysv dbus openssl
SYSTEMD_ROOT := scripts/server-root bookworm $(SYSTEMD_PACKAGES)
ROOTS := bookworm
OTHER_ROOTS := bullseye trixie forky
ARM64_ROOT := scripts/server-root bookworm:arm64 libssl-dev
SYSTEMD_INSTALLED := $(CARGO_TARGET_DIR)/systemd-installed
CONFINED_INSTALLED := $(CARGO_TARGET_DIR)/confined-installed
IMAGES := $(CARGO_TARGET_DIR)/image
IMAGE = $(IMAGES)/iam-kms-mariadb-$(DEB_ARCH).tar
RECORDINGS := $(CARGO_TARGET_DIR)/recordings
EXAMPLES := configuration mfa-at-boot many-hosts broker-service ec2-role on-premises-and-ec2 nightly-backup monitoring key-server \
	stock-plugin policies audit aws-account migration container mariadb-operator
DOC = $(PREFIX)/share/doc/iam-kms-wrapper
PACKAGE_DOC := /usr/share/doc/iam-kms-wrapper
PACKAGES := $(CARGO_TARGET_DIR)/packages
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
RELEASES := $(CARGO_TARGET_DIR)/releases
RELEASE := $(RELEASES)/$(VERSION)
# Where both tools of packaging look: to them, it is target/release/staged.
STAGED := $(BUILT)/release/staged
DEB_ARCH := $(if $(filter aarch64,$(ARCH)),arm64,amd64)
# Whoever starts make may ignore signals (nohup, a job in the background of a script), which tests would inherit.
CARGO_TEST := env --default-signal cargo test --locked
SYSTEMD_TESTS := $(CARGO_TEST) -p end-to-end-tests --test systemd -- --test-threads=3
ARM64_TESTS := server_main_job::tables_are_encrypted server_main_job::without_encryption server_backup::on_another_host
AWS_TESTS := $(CARGO_TEST) -p end-to-end-tests --test aws -- --nocapture
MONITORING_PACKAGES := prometheus prometheus-mysqld-exporter prometheus-node-exporter
THIRD_PARTY_LICENSES := $(CARGO_TARGET_DIR)/THIRD-PARTY-LICENSES

.DEFAULT_GOAL := help
.PHONY: help demo test lint advisories unit e2e test-servers test-systemd test-examples test-monitoring test-aws test-aws-moto mutants chaos dist test-plugin packages install package test-package bench bench-launcher bench-manage-key bench-plugin bench-key-server bench-server pictures fuzz miri docs recordings clean demo-fleet test-upgrade test-arm64 release tarball version test-reproducible test-console test-confinement test-key-servers image test-image

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: dist ## Show the whole path on a MariaDB of its own (INTERACTIVE=1: you type the code)
	@IAM_KMS_DIST=$(DIST) INTERACTIVE=$(INTERACTIVE) examples/demo/demo

demo-fleet: dist ## Show a key server, two database hosts without AWS, and one code for both
	@IAM_KMS_DIST=$(DIST) examples/key-server/demo

test: lint unit e2e ## Lints (format, licences, docs), unit and end-to-end tests

lint: packages $(CARGO_DENY) $(CARGO_MACHETE) ## Format, clippy, dependencies, licences, spelling, documentation
	@scripts/install-packages codespell shellcheck
	cargo fmt --all --check
	scripts/check-dependencies
	$(CARGO_MACHETE) --with-metadata
	scripts/check-docs
	git ls-files -z ':!Cargo.lock' ':!docs/src/images/*.svg' | xargs -0 codespell --ignore-words-list=awsome,crate,inout,ist,keypair,nd,ser,statics,tyes
	git grep -lE '^#!.*/(ba)?sh' | xargs shellcheck --severity=warning
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked -p end-to-end-tests -p local-aws --test '*' -- -D warnings
	cargo clippy --locked -p aws-key-management-plugin --features fault-points,mock,server-headers,stream-log --all-targets -- -D warnings
	cargo clippy --locked -p kms-data-keys -p kms-manage-key --features fault-points --all-targets -- -D warnings
	cargo clippy --locked -p iam-kms-broker --features fuzzing --all-targets -- -D warnings
	$(CARGO_DENY) --locked --workspace --config deny.toml check licenses bans sources
	$(CARGO_DENY) --locked --manifest-path plugin/Cargo.toml --config plugin/deny.toml check licenses bans sources
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --document-private-items
	$(MAKE) --silent advisories

# The database is at github.com; where that cannot be reached, this says so and fails nothing.
advisories: $(CARGO_DENY) ## Vulnerabilities that RustSec knows of in the locked packages; needs github.com
	@if git ls-remote --exit-code https://github.com/RustSec/advisory-db HEAD > /dev/null 2>&1; then \
		$(CARGO_DENY) --locked --workspace --config deny.toml check advisories; \
	else \
		echo 'Advisories NOT CHECKED: https://github.com/RustSec/advisory-db cannot be reached' >&2; \
	fi

unit: packages ## Unit tests, and those of local-aws with AWS's own CLI and boto3
	$(CARGO_TEST) --workspace
	$(CARGO_TEST) -p local-aws --test aws
	$(CARGO_TEST) -p aws-key-management-plugin --features mock,server-headers -- mock:: abi::
	RUSTFLAGS='--cfg aes_backend="soft" --cfg polyval_backend="soft"' CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/no-aes-ni \
		$(CARGO_TEST) -p aws-key-management-plugin --lib cipher

e2e: dist test-plugin ## End-to-end tests against a real mariadbd
	@scripts/install-packages ansible-core awscli curl iproute2 openssh-client openssh-server sudo
	IAM_KMS_DIST=$(DIST) $(CARGO_TEST) -p end-to-end-tests --test end_to_end -- --test-threads=6

test-servers: dist test-plugin ## The tests of the server on MariaDB 10.5 and 11.8, with the plugin that `make test` runs on 10.11
	@scripts/install-packages debootstrap
	scripts/test-servers $(DIST) $(SYSTEMD_PACKAGES)

chaos: dist ## A server under load, killed again and again beside a shadow of its rows; CHAOS_MINUTES=10, CHAOS_SEED=n
	IAM_KMS_DIST=$(DIST) CHAOS_MINUTES=$(CHAOS_MINUTES) $(if $(CHAOS_SEED),CHAOS_SEED=$(CHAOS_SEED)) \
		env --default-signal cargo run --locked --quiet -p end-to-end-tests --bin chaos

# On other releases: what depends on systemd. The rest follows pages that are written for Debian 12.
SYSTEMD_TESTS_bookworm := --skip package::
SYSTEMD_TESTS_trixie := broker_service:: crash_restart:: old_systemd:: setup::a_service_whose setup::options_alone
SYSTEMD_TESTS_forky := $(SYSTEMD_TESTS_trixie)
# systemd 247 can neither load a credential for mariadb.service nor decrypt one.
SYSTEMD_TESTS_bullseye := $(SYSTEMD_TESTS_trixie) --skip setup::options_alone --skip the_page_on_the_broker_moves_a_host_from_the_launcher \
	--skip the_long_term_key_may_be_encrypted --skip user_mysql_cannot_read_the_long_term_key_once \
	--skip a_session_that_a_process_of_the_server_has_systemd_keep
test-systemd: dist test-plugin ## The service under a systemd of its own, in a container; ROOTS="bullseye forky" for other releases
	@scripts/install-packages debootstrap systemd-container
	rm -rf $(SYSTEMD_INSTALLED)
	$(MAKE) install DESTDIR=$(SYSTEMD_INSTALLED)
	set -e; $(foreach suite,$(ROOTS),root=$$(scripts/server-root $(suite) $(SYSTEMD_PACKAGES)); \
		echo "The service on Debian $(suite):"; \
		IAM_KMS_DIST=$(DIST) IAM_KMS_INSTALLED=$(SYSTEMD_INSTALLED) IAM_KMS_SYSTEMD_ROOT=$$root \
			$(SYSTEMD_TESTS) $(SYSTEMD_TESTS_$(suite));)

test-confinement: dist ## The main job on a kernel that enforces AppArmor, and on one that enforces SELinux, in virtual machines
	@scripts/install-packages debootstrap e2fsprogs openssl qemu-system-x86
	rm -rf $(CONFINED_INSTALLED)
	$(MAKE) --silent install PREFIX=/usr DESTDIR=$(CONFINED_INSTALLED)
	scripts/test-confinement $(CONFINED_INSTALLED) $(DIST)

image: package ## The image for containers, into target/image: MariaDB with this package; ARCH=aarch64 in qemu
	@scripts/install-packages buildah debootstrap $(if $(filter-out $(HOST_ARCH),$(ARCH)),qemu-user-static binfmt-support)
	$(if $(filter-out $(HOST_ARCH),$(ARCH)),@$(ENABLE_QEMU))
	scripts/build-image $(DEB_ARCH) $(PACKAGES) $(IMAGE)

test-image: image ## The image, run with podman as the documents say: a server, compose, the jobs and pods of mariadb-operator
	@scripts/install-packages crun podman
	compose=$$(scripts/aws-tools podman-compose podman-compose==1.6.0)/podman-compose && \
		IAM_KMS_DIST=$(DIST) IAM_KMS_PODMAN_COMPOSE=$$compose scripts/with-podman $(IMAGE) \
		$(CARGO_TEST) -p end-to-end-tests --test image -- --test-threads=2

test-package: package ## The packages: installed, upgraded, removed, as the documents say; installed on other releases too
	@scripts/install-packages debootstrap systemd-container
	root=$$($(SYSTEMD_ROOT)) && IAM_KMS_DIST=$(DIST) IAM_KMS_PACKAGES=$(PACKAGES) \
		IAM_KMS_SYSTEMD_ROOT=$$root $(SYSTEMD_TESTS) package:: --skip package::upgrade
	set -e; for suite in $(OTHER_ROOTS); do \
		root=$$(scripts/server-root $$suite $(SYSTEMD_PACKAGES)); \
		echo "The packages on Debian $$suite:"; \
		IAM_KMS_DIST=$(DIST) IAM_KMS_PACKAGES=$(PACKAGES) IAM_KMS_SYSTEMD_ROOT=$$root \
			$(SYSTEMD_TESTS) package::the_installation_page package::red_hat; \
	done

# What was released or tagged before. Optimised as little as possible: its speed is not tested.
OLD := e2c614d
OLD_BUILD := $(CARGO_TARGET_DIR)/package-$(OLD)
test-upgrade: package ## From the package of 0.1.0 to this one and back; builds 0.1.0
	@scripts/install-packages debootstrap systemd-container
	rm -rf $(OLD_BUILD)/sources
	install -d $(OLD_BUILD)/sources
	git archive $(OLD) | tar --extract --directory $(OLD_BUILD)/sources
	@# Its list of licences downloads nothing, not even crates for other systems.
	cargo fetch --locked --quiet --manifest-path $(OLD_BUILD)/sources/Cargo.toml
	CI= CARGO_TARGET_DIR=$(OLD_BUILD)/target SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct $(OLD)) \
		CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		CARGO_PROFILE_LAUNCHER_OPT_LEVEL=0 $(MAKE) -C $(OLD_BUILD)/sources package
	root=$$($(SYSTEMD_ROOT)) && IAM_KMS_DIST=$(DIST) IAM_KMS_PACKAGES=$(PACKAGES) \
		IAM_KMS_OLD_PACKAGES=$(OLD_BUILD)/target/packages IAM_KMS_SYSTEMD_ROOT=$$root $(SYSTEMD_TESTS) package::upgrade

# Programs of another architecture run in qemu.
ENABLE_QEMU := { [ -e /proc/sys/fs/binfmt_misc/status ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc; } && \
	update-binfmts --enable qemu-aarch64
# qemu finds the C library of programs outside that Debian by its own prefix. It needs memory for each page that a program
# reserves: 24 GB for the 8 TB that InnoDB reserves by default.
test-arm64: ## The programs for aarch64 with the MariaDB of an arm64 Debian, in qemu
	@scripts/install-packages debootstrap qemu-user-static binfmt-support
	@$(ENABLE_QEMU)
	$(MAKE) ARCH=aarch64 dist
	set -e; root=$$($(ARM64_ROOT)); libraries=$$root/usr/lib/aarch64-linux-gnu; \
	install -d /etc/qemu-binfmt; ln -sfn $$root /etc/qemu-binfmt/aarch64; \
	IAM_KMS_DIST=$(CARGO_TARGET_DIR)/dist-aarch64 IAM_KMS_SERVER_ROOT=$$root \
		IAM_KMS_SERVER_OPTIONS=--innodb-buffer-pool-size-max=1G \
		$(CARGO_TEST) -p end-to-end-tests --test end_to_end -- --test-threads=2 $(ARM64_TESTS); \
	OPENSSL_LIB_DIR=$$libraries OPENSSL_INCLUDE_DIR=$$root/usr/include \
		CFLAGS_aarch64_unknown_linux_gnu=-I$$root/usr/include/aarch64-linux-gnu CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/arm64 \
		$(ZIG_CARGO) test --locked --target aarch64-unknown-linux-gnu.2.36 -p aws-key-management-plugin --lib cipher

test-console: dist ## The page of iam-kms-console in Chromium, with axe (10 seconds after the build); pictures in target/console
	@scripts/install-packages chromium chromium-driver fonts-dejavu-core
	python=$$(scripts/aws-tools console-tools selenium==4.36.0 axe-playwright-python==0.1.8)/python && \
		IAM_KMS_DIST=$(DIST) IAM_KMS_CONSOLE_PYTHON=$$python IAM_KMS_CONSOLE_PICTURES=$(CARGO_TARGET_DIR)/console \
		$(CARGO_TEST) -p end-to-end-tests --test console -- --nocapture

test-key-servers: dist ## One of two key servers is killed again and again while 50 hosts start, rotate and back up; KEY_SERVERS_SECONDS=75, KEY_SERVERS_SEED=n
	@scripts/install-packages iproute2
	IAM_KMS_DIST=$(DIST) KEY_SERVERS_SECONDS=$(KEY_SERVERS_SECONDS) $(if $(KEY_SERVERS_SEED),KEY_SERVERS_SEED=$(KEY_SERVERS_SEED)) \
		$(CARGO_TEST) -p end-to-end-tests --test key_servers -- --nocapture

test-examples: dist ## Policies and audit stack of examples/: what they allow, refuse and tell of
	scripts/test-examples $(DIST)

test-monitoring: dist ## Each alert of examples/monitoring fires from a real fault, with Debian's Prometheus and exporters
	@scripts/install-packages $(MONITORING_PACKAGES)
	promtool check rules examples/monitoring/alerts.yaml
	promtool test rules examples/tests/alerts.test.yaml
	IAM_KMS_DIST=$(DIST) $(CARGO_TEST) -p end-to-end-tests --test monitoring -- --test-threads=4

test-aws: dist ## The main job against AWS itself, in your account; tells what it costs and asks first
	IAM_KMS_DIST=$(DIST) scripts/test-aws $(AWS_TESTS)

test-aws-moto: dist ## The same with moto in place of AWS: that the test works and leaves nothing behind
	IAM_KMS_DIST=$(DIST) scripts/test-aws-moto $(AWS_TESTS)

# Exit status 3: a change made the code run without end, which a time limit has noticed.
mutants: packages $(CARGO_MUTANTS) ## Change the code in small ways and see that unit tests fail; MUTANTS_OF=crate for one crate
	PATH=$(TOOLS)/bin:$$PATH CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/mutants PROPTEST_CASES=64 cargo mutants --jobs 1 \
		--output $(CARGO_TARGET_DIR) --timeout 60 $(addprefix --package ,$(MUTANTS_OF)) || [ $$? = 3 ]

# The plugin by itself: together, cargo would give it the slower AES that other programs ask for. What only makes
# pages and plays AWS is this machine's.
dist: zigbuild ## Build what is installed, into target/dist; ARCH=aarch64 for the other architecture
	$(ZIGBUILD) --release -p iam-kms-broker -p iam-kms-console -p kms-data-keys
	$(ZIGBUILD) --release -p aws-key-management-plugin
	$(ZIGBUILD) --profile launcher -p iam-kms-wrapper -p iam-kms-unlock -p kms-manage-key
	cargo build --locked --release -p local-aws
	install -d $(DIST)/bin $(DIST)/plugin
	install -m 711 -t $(DIST)/bin $(addprefix $(BUILT)/launcher/,iam-kms-wrapper iam-kms-unlock kms-manage-key) \
		$(addprefix $(BUILT)/release/,iam-kms-broker iam-kms-console kms-data-keys)
	install -t $(DIST)/bin $(CARGO_TARGET_DIR)/release/local-aws
	install -m 644 $(BUILT)/release/libaws_key_management.so $(DIST)/plugin/aws_key_management.so
	rm -rf $(DIST)/share
	cargo run --locked --quiet -p packaging -- $(DIST)/share

# With fault points and mock, for the tests only. In a folder of its own: cargo would take one build for the other.
test-plugin: zigbuild
	$(ZIGBUILD) -p aws-key-management-plugin --features fault-points,mock,stream-log --target-dir $(CARGO_TARGET_DIR)/test-plugin
	install -D -m 644 -T $(CARGO_TARGET_DIR)/test-plugin/$(TARGET)/debug/libaws_key_management.so $(DIST)/test-plugin/aws_key_management.so
	cargo build --locked -p kms-data-keys --features fault-points
	cargo build --locked -p kms-manage-key --features fault-points
	install -D -t $(DIST)/test-bin $(addprefix $(CARGO_TARGET_DIR)/debug/,kms-data-keys kms-manage-key)

# Into a process whose program its user cannot read, the kernel lets nobody but root look, from its first
# instruction on: hence 711 for what holds credentials.
install: ## Install programs, plugin, units and man pages (PREFIX, PLUGIN_DIR, DESTDIR); after make dist
	install -D -m 711 -t $(DESTDIR)$(PREFIX)/bin $(addprefix $(DIST)/bin/,iam-kms-wrapper iam-kms-broker iam-kms-console iam-kms-unlock kms-manage-key kms-data-keys)
	install -D -m 644 -t $(DESTDIR)$(PLUGIN_DIR) $(DIST)/plugin/aws_key_management.so
	install -D -t $(DESTDIR)$(PREFIX)/libexec systemd/iam-kms-wrapper-prompt
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system systemd/*.path systemd/*.service
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/iam-kms-wrapper/mariadb.service.d systemd/mariadb.service.d/*
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/iam-kms-wrapper/redhat/mariadb.service.d systemd/redhat/mariadb.service.d/*
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/iam-kms-wrapper/apparmor packaging/apparmor/mariadbd
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/selinux/packages/iam-kms-wrapper packaging/selinux/iam_kms_wrapper.cil
	cp -R $(DIST)/share/. $(DESTDIR)$(PREFIX)/share
	install -D -m 644 -t $(DESTDIR)$(DOC) README.md CHANGELOG.md SECURITY.md
	install -D -m 644 -t $(DESTDIR)$(DOC)/docs/src docs/src/*.md
	install -D -m 644 -t $(DESTDIR)$(DOC)/docs/src/images docs/src/images/*
	install -d $(DESTDIR)$(PREFIX)/share/iam-kms-wrapper/examples
	cp -R $(addprefix examples/,$(EXAMPLES)) $(DESTDIR)$(PREFIX)/share/iam-kms-wrapper/examples
	ln -sfT ../../iam-kms-wrapper/examples $(DESTDIR)$(DOC)/examples
	find $(addprefix $(DESTDIR)$(PREFIX)/,lib/systemd/system share/iam-kms-wrapper share/man) -type f -name '*iam-kms-*' \
		-exec sed -i 's|/usr/local/|$(PREFIX)/|' {} +

# Times in the packages are those of the commit, whenever they are built.
package: export SOURCE_DATE_EPOCH := $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct))
package: GENERATE_RPM = $(CARGO_GENERATE_RPM) --package packaging --payload-compress xz --target $(TARGET) \
	--target-dir $(CARGO_TARGET_DIR) --output $(PACKAGES)/
# Everything that is installed, with what only packages have: licences, and where distributions want things.
# MariaDB.org's server for Red Hat has its plugins below lib64/mysql, Red Hat's own below lib64/mariadb.
package: dist $(THIRD_PARTY_LICENSES) $(CARGO_DEB) $(CARGO_GENERATE_RPM) ## Debian and RPM packages, into target/packages; ARCH=aarch64
	@scripts/install-packages lintian rpm rpmlint
	rm -rf $(STAGED) $(PACKAGES)/*_$(DEB_ARCH).deb $(PACKAGES)/*.$(ARCH).rpm $(PACKAGES)/*.noarch.rpm
	install -d $(STAGED) $(PACKAGES)
	$(MAKE) --silent install PREFIX=/usr DESTDIR=$(STAGED)/debian
	# cargo-deb would follow the link.
	rm $(STAGED)/debian$(PACKAGE_DOC)/examples
	mv $(STAGED)/debian/usr/share/zsh/site-functions $(STAGED)/debian/usr/share/zsh/vendor-completions
	mv $(STAGED)/debian$(PACKAGE_DOC)/CHANGELOG.md $(STAGED)/debian$(PACKAGE_DOC)/changelog
	packaging/debian/changelog > $(STAGED)/debian$(PACKAGE_DOC)/changelog.Debian
	find $(STAGED)/debian -type f '(' -path '*/man/*' -o -name 'changelog*' ')' -exec gzip -9n {} +
	install -m 644 -t $(STAGED)/debian$(PACKAGE_DOC) $(THIRD_PARTY_LICENSES)
	install -D -m 644 -T packaging/debian/lintian-overrides $(STAGED)/debian/usr/share/lintian/overrides/iam-kms-wrapper
	$(MAKE) --silent install PREFIX=/usr PLUGIN_DIR=/usr/lib64/mysql/plugin DESTDIR=$(STAGED)/redhat
	install -D -m 644 -t $(STAGED)/redhat/usr/lib64/mariadb/plugin $(DIST)/plugin/aws_key_management.so
	install -D -m 644 -t $(STAGED)/redhat/usr/share/licenses/iam-kms-wrapper \
		LICENSE-APACHE LICENSE-MIT $(THIRD_PARTY_LICENSES)
	find $(STAGED)/redhat/usr/share/man -type f -exec gzip -9n {} +
	install -d $(addprefix $(STAGED)/redhat-,programs scripts documents selinux)
	rm $(STAGED)/redhat$(PACKAGE_DOC)/examples
	cd $(STAGED)/redhat && cp -r --parents -t ../redhat-documents usr/share/doc usr/share/man && rm -r usr/share/doc usr/share/man
	cd $(STAGED)/redhat && cp -r --parents -t ../redhat-selinux usr/share/selinux && rm -r usr/share/selinux
	cd $(STAGED)/redhat && find * -type f -perm 711 -exec cp --parents -t ../redhat-programs {} + -exec rm {} +
	cd $(STAGED)/redhat && find * -type f -perm /111 -exec cp --parents -t ../redhat-scripts {} + -exec rm {} +
	$(CARGO_DEB) --no-build --no-strip --target $(TARGET) --package packaging --output $(PACKAGES)/
	$(GENERATE_RPM)
	$(GENERATE_RPM) --variant selinux --arch noarch
	lintian --allow-root --fail-on error,warning $(PACKAGES)/*_$(DEB_ARCH).deb
	rpmlint --config packaging/redhat/rpmlint.toml $(PACKAGES)/*.$(ARCH).rpm $(PACKAGES)/*.noarch.rpm

release: export SOURCE_DATE_EPOCH := $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct))
release: $(CARGO_CYCLONEDX) ## Packages, tarballs, images, sources, SBOM, licences and checksums of both architectures, into target/releases
	rm -rf $(RELEASE)
	install -d $(RELEASE)
	set -e; for arch in x86_64 aarch64; do $(MAKE) ARCH=$$arch package tarball image; done
	cp $(PACKAGES)/*.deb $(PACKAGES)/*.rpm $(RELEASE)
	set -e; for arch in amd64 arm64; do \
		cp $(IMAGES)/iam-kms-mariadb-$$arch.tar $(RELEASE)/iam-kms-mariadb-$(VERSION)-$$arch.tar; done
	git archive --prefix=iam-kms-wrapper-$(VERSION)/ HEAD | gzip -9n > $(RELEASE)/iam-kms-wrapper-$(VERSION).tar.gz
	packaging/sbom $(CARGO_CYCLONEDX) $(RELEASE)
	cp $(THIRD_PARTY_LICENSES) $(RELEASE)/THIRD-PARTY-LICENSES
	cd $(RELEASE) && sha256sum -- * > SHA256SUMS

# For systems without .deb or .rpm: what `make install` installs, with paths below /usr/local.
tarball: export SOURCE_DATE_EPOCH := $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct))
tarball: dist $(THIRD_PARTY_LICENSES)
	rm -rf $(BUILT)/tarball
	$(MAKE) --silent install DESTDIR=$(BUILT)/tarball
	install -m 644 -t $(BUILT)/tarball$(DOC) LICENSE-APACHE LICENSE-MIT $(THIRD_PARTY_LICENSES)
	install -d $(RELEASE)
	tar --create --directory $(BUILT)/tarball --sort=name --owner=0 --group=0 --numeric-owner --mtime=@$(SOURCE_DATE_EPOCH) \
		usr | gzip -9n > $(RELEASE)/iam-kms-wrapper-$(VERSION)-$(ARCH)-linux.tar.gz

version:
	@echo $(VERSION)

# A second build, in another folder, from a fresh clone.
test-reproducible: package tarball image ## Build packages, tarball and image again in another folder: byte for byte the same; ARCH=aarch64
	rm -rf $(CARGO_TARGET_DIR)/again
	git clone --quiet . $(CARGO_TARGET_DIR)/again/sources
	cd $(CARGO_TARGET_DIR)/again/sources && git checkout --quiet $$(git -C $(CURDIR) rev-parse HEAD) && \
		CI= CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/again/target $(MAKE) ARCH=$(ARCH) package tarball image
	set -e; cd $(CARGO_TARGET_DIR); for file in packages/*_$(DEB_ARCH).deb packages/*.$(ARCH).rpm packages/*.noarch.rpm $(notdir $(RELEASES))/*/*-$(ARCH)-linux.tar.gz \
		image/$(notdir $(IMAGE)); do \
		cmp $$file again/target/$$file; sha256sum $$file; done

bench: bench-launcher bench-manage-key bench-plugin ## Benchmarks, each beside its peer in one run

bench-launcher: dist ## The launcher beside the Go program
	@scripts/install-packages $(BENCH_PACKAGES)
	install -d $(BENCH)
	cd wrapper/benches/go-peer && GO111MODULE=off GOPATH=/usr/share/gocode go build -trimpath -ldflags='-s -w' -o $(BENCH)/go-peer
	$(CC) -O2 -static -o $(BENCH)/started wrapper/benches/started.c
	IAM_KMS_DIST=$(DIST) PYTHONDONTWRITEBYTECODE=1 wrapper/benches/run $(BENCH)

bench-manage-key: dist ## kms-manage-key beside boto3
	@scripts/install-packages openssl
	install -d $(BENCH)
	$(CC) -O2 -static -o $(BENCH)/measured wrapper/benches/measured.c
	python=$$(scripts/aws-tools)/python && IAM_KMS_DIST=$(DIST) PYTHONDONTWRITEBYTECODE=1 wrapper/benches/run-manage-key $(BENCH) $$python

bench-plugin: dist ## The plugin beside OpenSSL, and the start with 1,000 keys
	install -d $(BENCH)
	IAM_KMS_DIST=$(DIST) cargo bench --locked -p end-to-end-tests --bench plugin 2>$(BENCH)/plugin.log || (cat $(BENCH)/plugin.log; exit 1)

bench-key-server: dist ## A thousand hosts start at once, with a key server and each with KMS itself; two minutes
	IAM_KMS_DIST=$(DIST) cargo bench --locked --quiet -p end-to-end-tests --bench key_server

bench-server: dist ## sysbench on a server without encryption, with file_key_management, with ours; 20 minutes, BENCH_ROUNDS=5
	@scripts/install-packages sysbench
	install -d $(BENCH)
	IAM_KMS_DIST=$(DIST) PYTHONDONTWRITEBYTECODE=1 tests/benches/server/run $(BENCH)

pictures: dist ## Draw the book's pictures of benchmarks, from its tables, and of what Prometheus records
	@scripts/install-packages python3-matplotlib $(MONITORING_PACKAGES)
	rm -rf $(RECORDINGS)/monitoring
	IAM_KMS_DIST=$(DIST) IAM_KMS_PICTURES=$(RECORDINGS)/monitoring $(CARGO_TEST) -p end-to-end-tests --test monitoring -- every_number
	scripts/plot-monitoring $(RECORDINGS)/monitoring docs/src/images/monitoring.svg
	scripts/plot-benchmarks docs/src/benchmarks.md docs/src/images

fuzz: packages $(CARGO_FUZZ) ## Fuzz protocol, key server, key files and ciphers, FUZZ_SECONDS=60 for each
	rustup toolchain list | grep -q '^nightly' || rustup toolchain install --profile minimal nightly
	for target in $(FUZZ_TARGETS); do \
		echo "Fuzzing $$target for $(FUZZ_SECONDS) seconds"; \
		PATH=$(TOOLS)/bin:$$PATH cargo +nightly fuzz run --target-dir $(CARGO_TARGET_DIR)/fuzz $$target -- \
			-max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 || exit 1; \
	done

miri: packages ## Run under Miri what can run there of the plugin's unsafe code
	rustup toolchain list | grep -q '^nightly' || rustup toolchain install --profile minimal nightly
	rustup component add --toolchain nightly miri rust-src
	RUST_BACKTRACE=0 MIRIFLAGS=-Zmiri-disable-isolation $(MIRI) -p aws-key-management-plugin \
		--target-dir $(CARGO_TARGET_DIR)/miri -- $(MIRI_TESTS)
	RUST_BACKTRACE=0 MIRIFLAGS=-Zmiri-disable-isolation $(MIRI) -p locked-memory --target-dir $(CARGO_TARGET_DIR)/miri

docs: $(MDBOOK) ## Build the book of docs/, into target/book
	scripts/build-book $(MDBOOK) $(CARGO_TARGET_DIR)/book

recordings: dist ## Record a start and a refresh of the session on a booted machine, for the README
	@scripts/install-packages debootstrap systemd-container
	rm -rf $(SYSTEMD_INSTALLED) $(RECORDINGS)
	$(MAKE) install DESTDIR=$(SYSTEMD_INSTALLED)
	install -d $(RECORDINGS)
	root=$$($(SYSTEMD_ROOT)) && IAM_KMS_DIST=$(DIST) IAM_KMS_INSTALLED=$(SYSTEMD_INSTALLED) \
		IAM_KMS_SYSTEMD_ROOT=$$root IAM_KMS_RECORDINGS=$(RECORDINGS) $(SYSTEMD_TESTS) recordings::
	set -e; for name in start refresh; do scripts/render-cast $(RECORDINGS)/$$name.cast docs/src/images/$$name.svg; done

.PHONY: zigbuild
zigbuild: packages $(CARGO_ZIGBUILD) $(ZIG)
	@[ -d "$$(rustc --print target-libdir --target $(TARGET))" ] || rustup target add $(TARGET)

packages: ## Install the Debian packages that building, testing and the demo need
	@scripts/install-packages

$(THIRD_PARTY_LICENSES): Cargo.lock deny.toml packaging/third-party-licenses packaging/third-party-licenses.hbs | $(CARGO_ABOUT)
	packaging/third-party-licenses $(CARGO_ABOUT) > $@.new
	mv $@.new $@

$(CARGO_ZIGBUILD):
	cargo install --locked --root $(TOOLS) cargo-zigbuild@$(CARGO_ZIGBUILD_VERSION)

$(ZIG):
	rm -rf $@.new
	python3 -m venv $@.new
	$@.new/bin/pip --quiet install ziglang==$(lastword $(subst -, ,$@))
	mv $@.new $@

$(CARGO_DENY):
	cargo install --locked --root $(TOOLS) cargo-deny@$(CARGO_DENY_VERSION)

$(MDBOOK):
	cargo install --locked --root $(TOOLS) mdbook@$(MDBOOK_VERSION)

$(CARGO_MACHETE):
	cargo install --locked --root $(TOOLS) cargo-machete@$(CARGO_MACHETE_VERSION)

$(CARGO_ABOUT):
	cargo install --locked --root $(TOOLS) --features cli cargo-about@$(CARGO_ABOUT_VERSION)

$(CARGO_DEB):
	cargo install --locked --root $(TOOLS) cargo-deb@$(CARGO_DEB_VERSION)

$(CARGO_GENERATE_RPM):
	cargo install --locked --root $(TOOLS) cargo-generate-rpm@$(CARGO_GENERATE_RPM_VERSION)

$(CARGO_CYCLONEDX):
	cargo install --locked --root $(TOOLS) cargo-cyclonedx@$(CARGO_CYCLONEDX_VERSION)

$(CARGO_FUZZ):
	cargo install --locked --root $(TOOLS) cargo-fuzz@$(CARGO_FUZZ_VERSION)

$(CARGO_MUTANTS):
	cargo install --locked --root $(TOOLS) cargo-mutants@$(CARGO_MUTANTS_VERSION)

clean: ## Remove what was built
	cargo clean
