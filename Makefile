# What to run: `make demo` shows it, `make test` checks it. Each installs what it needs.

export CARGO_TARGET_DIR := $(if $(CI),$(HOME)/.cache/iam-kms-wrapper/target,$(abspath $(or $(CARGO_TARGET_DIR),target)))
DIST := $(CARGO_TARGET_DIR)/dist
BENCH := $(CARGO_TARGET_DIR)/bench
BENCH_PACKAGES := golang-go golang-github-aws-aws-sdk-go-dev golang-github-robfig-config-dev openssl
TOOLS := $(HOME)/.cache/iam-kms-wrapper/tools
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
CARGO_FUZZ := $(TOOLS)/bin/cargo-fuzz
CARGO_FUZZ_VERSION := 0.13.1
CARGO_MUTANTS := $(TOOLS)/bin/cargo-mutants
CARGO_MUTANTS_VERSION := 27.1.0
MUTANTS_OF := key-files broker-api code-channel aws-key-management-plugin
FUZZ_TARGETS := frames key_names manifest offline_keys ciphers cipher_calls
FUZZ_SECONDS := 60
CHAOS_MINUTES := 10
MIRI := cargo +nightly miri test --locked --lib
MIRI_TESTS := ffi::crypt:: ffi::tests::set_global keyring::
PREFIX := /usr/local
PLUGIN_DIR := /usr/lib/mysql/plugin
SYSTEMD_ROOT := scripts/server-root bookworm systemd-sysv dbus openssl
SYSTEMD_INSTALLED := $(CARGO_TARGET_DIR)/systemd-installed
RECORDINGS := $(CARGO_TARGET_DIR)/recordings
SERVICES := -p iam-kms-broker -p kms-data-keys -p local-aws
EXAMPLES := configuration mfa-at-boot many-hosts broker-service ec2-role on-premises-and-ec2 nightly-backup \
	stock-plugin policies audit aws-account migration
DOC = $(PREFIX)/share/doc/iam-kms-wrapper
PACKAGE_DOC := /usr/share/doc/iam-kms-wrapper
PACKAGES := $(CARGO_TARGET_DIR)/packages
# Below target/release, where both tools of packaging look.
STAGED := $(CARGO_TARGET_DIR)/release/staged
# Whoever starts make may ignore signals (nohup, a job in the background of a script), which tests would inherit.
CARGO_TEST := env --default-signal cargo test --locked
SYSTEMD_TESTS := $(CARGO_TEST) -p end-to-end-tests --test systemd -- --test-threads=3
AWS_TESTS := $(CARGO_TEST) -p end-to-end-tests --test aws -- --nocapture
THIRD_PARTY_LICENSES := $(CARGO_TARGET_DIR)/THIRD-PARTY-LICENSES

.DEFAULT_GOAL := help
.PHONY: help demo test lint advisories unit e2e test-servers test-systemd test-examples test-aws test-aws-moto mutants chaos dist test-plugin packages install package test-package bench bench-launcher bench-manage-key bench-plugin fuzz miri docs recordings clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: dist ## Show the whole path on a MariaDB of its own (INTERACTIVE=1: you type the code)
	@IAM_KMS_DIST=$(DIST) INTERACTIVE=$(INTERACTIVE) examples/demo/demo

test: lint unit e2e ## Everything that must hold: lints, licences, docs, unit and end-to-end tests

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
	IAM_KMS_DIST=$(DIST) $(CARGO_TEST) -p end-to-end-tests --test end_to_end -- --test-threads=6

test-servers: dist ## The tests of the server on MariaDB 10.5, 10.11 and 11.8, all with one plugin
	@scripts/install-packages debootstrap
	scripts/test-servers $(DIST)

chaos: dist ## A server under load, killed again and again beside a shadow of its rows; CHAOS_MINUTES=10, CHAOS_SEED=n
	IAM_KMS_DIST=$(DIST) CHAOS_MINUTES=$(CHAOS_MINUTES) $(if $(CHAOS_SEED),CHAOS_SEED=$(CHAOS_SEED)) \
		env --default-signal cargo run --locked --quiet -p end-to-end-tests --bin chaos

test-systemd: dist test-plugin ## The service under a systemd of its own, in a container
	@scripts/install-packages debootstrap systemd-container
	rm -rf $(SYSTEMD_INSTALLED)
	$(MAKE) install DESTDIR=$(SYSTEMD_INSTALLED)
	root=$$($(SYSTEMD_ROOT)) && IAM_KMS_DIST=$(DIST) IAM_KMS_INSTALLED=$(SYSTEMD_INSTALLED) \
		IAM_KMS_SYSTEMD_ROOT=$$root $(SYSTEMD_TESTS) --skip package::

test-package: package ## The packages: installed, upgraded, removed, as the documents say
	@scripts/install-packages debootstrap systemd-container
	root=$$($(SYSTEMD_ROOT)) && IAM_KMS_DIST=$(DIST) IAM_KMS_PACKAGES=$(PACKAGES) \
		IAM_KMS_SYSTEMD_ROOT=$$root $(SYSTEMD_TESTS) package::

test-examples: dist ## Policies and audit stack of examples/: what they allow, refuse and tell of
	scripts/test-examples $(DIST)

test-aws: dist ## The main job against AWS itself, in your account; tells what it costs and asks first
	IAM_KMS_DIST=$(DIST) scripts/test-aws $(AWS_TESTS)

test-aws-moto: dist ## The same with moto in place of AWS: that the test works and leaves nothing behind
	IAM_KMS_DIST=$(DIST) scripts/test-aws-moto $(AWS_TESTS)

# Exit status 3: a change made the code run without end, which a time limit has noticed.
mutants: packages $(CARGO_MUTANTS) ## Change the code in small ways and see that unit tests fail; MUTANTS_OF=crate for one crate
	PATH=$(TOOLS)/bin:$$PATH CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/mutants PROPTEST_CASES=64 cargo mutants --jobs 1 \
		--output $(CARGO_TARGET_DIR) --timeout 60 $(addprefix --package ,$(MUTANTS_OF)) || [ $$? = 3 ]

# The plugin by itself: together, cargo would give it the slower AES that local-aws asks for.
dist: packages ## Build what is installed, into target/dist
	cargo build --locked --release $(SERVICES) -p packaging
	cargo build --locked --release -p aws-key-management-plugin
	cargo build --locked --profile launcher -p iam-kms-wrapper -p kms-manage-key
	install -d $(DIST)/bin $(DIST)/plugin
	install -m 711 -t $(DIST)/bin $(addprefix $(CARGO_TARGET_DIR)/launcher/,iam-kms-wrapper kms-manage-key) \
		$(addprefix $(CARGO_TARGET_DIR)/release/,iam-kms-broker kms-data-keys)
	install -t $(DIST)/bin $(CARGO_TARGET_DIR)/release/local-aws
	install -m 644 $(CARGO_TARGET_DIR)/release/libaws_key_management.so $(DIST)/plugin/aws_key_management.so
	rm -rf $(DIST)/share
	$(CARGO_TARGET_DIR)/release/packaging $(DIST)/share

# With fault points and mock, for the tests only. In a folder of its own: cargo would take one build for the other.
test-plugin: packages
	cargo build --locked -p aws-key-management-plugin --features fault-points,mock,stream-log --target-dir $(CARGO_TARGET_DIR)/test-plugin
	install -D -m 644 -T $(CARGO_TARGET_DIR)/test-plugin/debug/libaws_key_management.so $(DIST)/test-plugin/aws_key_management.so
	cargo build --locked -p kms-data-keys --features fault-points
	cargo build --locked -p kms-manage-key --features fault-points
	install -D -t $(DIST)/test-bin $(addprefix $(CARGO_TARGET_DIR)/debug/,kms-data-keys kms-manage-key)

# Into a process whose program its user cannot read, the kernel lets nobody but root look, from its first
# instruction on: hence 711 for what holds credentials.
install: ## Install programs, plugin, units and man pages (PREFIX, PLUGIN_DIR, DESTDIR); after make dist
	install -D -m 711 -t $(DESTDIR)$(PREFIX)/bin $(addprefix $(DIST)/bin/,iam-kms-wrapper iam-kms-broker kms-manage-key kms-data-keys)
	install -D -m 644 -t $(DESTDIR)$(PLUGIN_DIR) $(DIST)/plugin/aws_key_management.so
	install -D -t $(DESTDIR)$(PREFIX)/libexec systemd/iam-kms-wrapper-prompt
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system systemd/*.path systemd/*.service
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/iam-kms-wrapper/mariadb.service.d systemd/mariadb.service.d/*
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/iam-kms-wrapper/redhat/mariadb.service.d systemd/redhat/mariadb.service.d/*
	cp -R $(DIST)/share/. $(DESTDIR)$(PREFIX)/share
	install -D -m 644 -t $(DESTDIR)$(DOC) README.md CHANGELOG.md SECURITY.md
	install -D -m 644 -t $(DESTDIR)$(DOC)/docs/src docs/src/*.md
	install -D -m 644 -t $(DESTDIR)$(DOC)/docs/src/images docs/src/images/*
	install -d $(DESTDIR)$(DOC)/examples
	cp -R $(addprefix examples/,$(EXAMPLES)) $(DESTDIR)$(DOC)/examples
	find $(addprefix $(DESTDIR)$(PREFIX)/,lib/systemd/system share/iam-kms-wrapper share/man) -type f -name '*iam-kms-*' \
		-exec sed -i 's|/usr/local/|$(PREFIX)/|' {} +

# Times in the packages are those of the commit, whenever they are built.
package: export SOURCE_DATE_EPOCH := $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct))
# Everything that is installed, with what only packages have: licences, and where distributions want things.
# MariaDB.org's server for Red Hat has its plugins below lib64/mysql, Red Hat's own below lib64/mariadb.
package: dist $(THIRD_PARTY_LICENSES) $(CARGO_DEB) $(CARGO_GENERATE_RPM) ## Debian and RPM packages, into target/packages
	@scripts/install-packages lintian rpm
	rm -rf $(STAGED) $(PACKAGES)
	install -d $(STAGED) $(PACKAGES)
	$(MAKE) --silent install PREFIX=/usr DESTDIR=$(STAGED)/debian
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
	install -d $(STAGED)/redhat-programs $(STAGED)/redhat-scripts
	cd $(STAGED)/redhat && find * -type f -perm 711 -exec cp --parents -t ../redhat-programs {} + -exec rm {} +
	cd $(STAGED)/redhat && find * -type f -perm /111 -exec cp --parents -t ../redhat-scripts {} + -exec rm {} +
	$(CARGO_DEB) --no-build --no-strip --package packaging --output $(PACKAGES)/
	$(CARGO_GENERATE_RPM) --package packaging --target-dir $(CARGO_TARGET_DIR) --output $(PACKAGES)/
	lintian --allow-root --fail-on error,warning $(PACKAGES)/*.deb

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

fuzz: packages $(CARGO_FUZZ) ## Fuzz protocol, key files and ciphers, FUZZ_SECONDS=60 for each
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

packages: ## Install the Debian packages that building, testing and the demo need
	@scripts/install-packages

$(THIRD_PARTY_LICENSES): Cargo.lock deny.toml packaging/third-party-licenses packaging/third-party-licenses.hbs | $(CARGO_ABOUT)
	packaging/third-party-licenses $(CARGO_ABOUT) > $@.new
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

$(CARGO_FUZZ):
	cargo install --locked --root $(TOOLS) cargo-fuzz@$(CARGO_FUZZ_VERSION)

$(CARGO_MUTANTS):
	cargo install --locked --root $(TOOLS) cargo-mutants@$(CARGO_MUTANTS_VERSION)

clean: ## Remove what was built
	cargo clean
