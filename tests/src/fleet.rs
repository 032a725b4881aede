//! Machines of a fleet: each has namespaces of its own for network, mounts, processes and host name, an
//! sshd, and what is installed. The operator is in their network, and nobody else.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    panic::resume_unwind,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, unshare};

use crate::{LocalAws, Process, Sandbox, dist};

/// The operator's address.
const OPERATOR: &str = "10.77.0.1";

/// What a machine does before its own work. `$1` is its name, `$2` its number, `$3` the programs.
const BOOT: &str = r#"
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd /run/iam-kms-wrapper
mount --bind "$3" /usr/local/bin
hostname "$1"
echo 'ready for a network'
until [ -e /proc/sys/net/ipv4/conf/eth0 ]; do sleep 0.05; done
ip link set lo up
ip address add "10.77.0.$2/24" dev eth0
ip link set eth0 up
"#;

/// The sshd, in the background; `$4` is its configuration.
const SSHD: &str = r#"
/usr/sbin/sshd -D -e -f "$4" &
until grep -q ':0016 00000000:0000 0A' /proc/net/tcp; do sleep 0.05; done
"#;

/// What a machine does.
pub enum Role {
    /// A broker waits for a session document.
    Broker,
    /// One with these lines in its configuration, too.
    KeyServer(String),
    /// A broker with this configuration, which knows nothing of AWS.
    DatabaseHost(String),
    /// The launcher waits for one, and then runs this command.
    Launcher(&'static str),
    /// The sshd alone runs.
    Idle,
    /// There is not even an sshd: it refuses connections.
    WithoutSshd,
    /// It answers no packet.
    Silent,
    /// It takes connections, and then says nothing.
    Hung,
}

/// Runs a test in a network of its own, in which only it and its children are.
pub fn in_a_network_of_its_own(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Of this thread alone, and of the threads and processes that it starts.
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            // Without a fixed address, that of the bridge would change when a machine goes away.
            sh(&format!(
                "mount --make-rprivate /
                ip link set lo up
                ip link add fleet address 02:00:00:00:00:01 type bridge
                ip address add {OPERATOR}/24 dev fleet
                ip link set fleet up"
            ));
            test();
        });
        if let Err(panic) = thread.join() {
            resume_unwind(panic);
        }
    });
}

fn sh(script: &str) {
    let output = Command::new("sh").args(["-euc", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
}

/// The operator's machine, and those that they can log in to.
pub struct Fleet {
    /// AWS.
    pub aws: LocalAws,
    /// The operator's files.
    pub sandbox: Sandbox,
    machines: Vec<Process>,
    aws_for_machines: String,
    ssh_configuration: String,
    known_hosts: String,
}

impl Fleet {
    /// No machine yet. Must be called in a network of its own.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let sandbox = Sandbox::new();
        let aws = LocalAws::start(&sandbox);
        let aws_for_machines = forward_to(&aws.endpoint());
        for key in ["operator", "host"] {
            let file = sandbox.path(key);
            sh(&format!(
                "ssh-keygen -q -t ed25519 -N '' -f {}",
                file.display()
            ));
        }
        let programs = sandbox.directory("programs");
        let program = programs.join("iam-kms-wrapper");
        fs::copy(dist("bin/iam-kms-wrapper"), &program).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o711)).unwrap();
        sandbox.write("ssh_config", "");
        sh(&format!(
            "mount --bind {} /etc/ssh/ssh_config",
            sandbox.path("ssh_config").display()
        ));
        Self {
            aws,
            sandbox,
            machines: Vec::new(),
            aws_for_machines,
            ssh_configuration: String::new(),
            known_hosts: String::new(),
        }
    }

    /// The address of the machine that is added next.
    pub fn next_address(&self) -> String {
        format!("10.77.0.{}", self.machines.len() + 2)
    }

    /// Starts a machine, and returns its number in the network.
    pub fn add(&mut self, name: &str, role: &Role) -> usize {
        self.add_with(name, role, "")
    }

    /// Starts one on which the operator's ssh key has these options of authorized_keys.
    pub fn add_with(&mut self, name: &str, role: &Role, options: &str) -> usize {
        let number = self.machines.len() + 2;
        let (with_sshd, work) = self.work(name, role);
        let script = [BOOT, if with_sshd { SSHD } else { "" }, &work].concat();
        let sshd = self.sshd_configuration(name, options);
        let mut command = Command::new("unshare");
        command
            .args([
                "--net",
                "--mount",
                "--pid",
                "--uts",
                "--fork",
                "--kill-child",
            ])
            .args(["sh", "-euc", &script, "sh", name, &number.to_string()])
            .arg(self.sandbox.path("programs"))
            .arg(sshd)
            .stdin(Stdio::null());
        let machine = Process::start(&mut command);
        machine.wait_for("ready for a network");
        let pid = machine.pid();
        sh(&format!(
            "ip link add v{number} type veth peer name eth0 netns {pid}
            ip link set v{number} master fleet
            ip link set v{number} up"
        ));
        machine.wait_for(match role {
            Role::Broker | Role::KeyServer(_) | Role::Launcher(_) => {
                "session document: iam-kms-wrapper code"
            }
            Role::DatabaseHost(_) => "gets its keys from",
            _ => "ready for the operator",
        });
        self.machines.push(machine);
        self.introduce(name, number);
        number
    }

    /// What a machine does after its boot, and whether it has an sshd before that.
    fn work(&self, name: &str, role: &Role) -> (bool, String) {
        let lasting = "\necho ready for the operator\nexec sleep infinity\n";
        let aws = format!(
            "\nexec env -i PATH=/usr/bin:/bin AWS_EC2_METADATA_DISABLED=true AWS_ENDPOINT_URL={} ",
            self.aws_for_machines
        );
        let everywhere =
            "[kms]\nlog_format = json\nbroker_socket = /run/iam-kms-wrapper/broker.sock\n";
        let with_aws = "mfa = elsewhere\nkms_mfa_socket = /run/iam-kms-wrapper/mfa\n";
        let lines = match role {
            Role::KeyServer(lines) => format!("{with_aws}{lines}"),
            Role::DatabaseHost(lines) => lines.clone(),
            _ => with_aws.into(),
        };
        let configuration = self
            .sandbox
            .write(&format!("{name}.config"), &format!("{everywhere}{lines}"));
        let configuration = configuration.display();
        let program = |name: &str| dist("bin").join(name).display().to_string();
        match role {
            Role::Broker | Role::KeyServer(_) => {
                let broker = program("iam-kms-broker");
                (true, format!("{aws}{broker} --config={configuration}\n"))
            }
            Role::DatabaseHost(_) => {
                let broker = program("iam-kms-broker");
                (
                    true,
                    format!("\nexec env -i {broker} --config={configuration}\n"),
                )
            }
            Role::Launcher(command) => {
                let launcher = program("iam-kms-wrapper");
                (
                    true,
                    format!("{aws}{launcher} --config={configuration} {command}\n"),
                )
            }
            Role::Idle => (true, lasting.into()),
            Role::WithoutSshd => (false, lasting.into()),
            // Its answers to the operator go nowhere.
            Role::Silent => (
                true,
                format!("ip route add blackhole {OPERATOR}/32{lasting}"),
            ),
            Role::Hung => (true, format!("kill -STOP $!{lasting}")),
        }
    }

    fn sshd_configuration(&self, name: &str, options: &str) -> PathBuf {
        let key = fs::read_to_string(self.sandbox.path("operator.pub")).unwrap();
        let keys = self
            .sandbox
            .write(&format!("{name}.keys"), &format!("{options} {key}"));
        let host_key = self.sandbox.path("host");
        self.sandbox.write(
            &format!("{name}.sshd"),
            &format!(
                "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nPidFile none\nUsePAM no\n\
                 PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n",
                host_key.display(),
                keys.display()
            ),
        )
    }

    /// Adds it to the operator's ssh_config and known_hosts.
    fn introduce(&mut self, name: &str, number: usize) {
        let key = fs::read_to_string(self.sandbox.path("host.pub")).unwrap();
        self.known_hosts += &format!("10.77.0.{number} {key}");
        self.ssh_configuration += &format!(
            "Host {name}\n HostName 10.77.0.{number}\nHost {name} 10.77.0.{number}\n User root\n \
             IdentityFile {}\n UserKnownHostsFile {}\n StrictHostKeyChecking yes\n",
            self.sandbox.path("operator").display(),
            self.sandbox
                .write("known_hosts", &self.known_hosts)
                .display()
        );
        // Not replaced: it is mounted.
        fs::write(self.sandbox.path("ssh_config"), &self.ssh_configuration).unwrap();
    }

    /// The machine with this number.
    pub fn machine(&self, number: usize) -> &Process {
        &self.machines[number - 2]
    }

    /// A file of a machine as a path of this one.
    pub fn path(&self, number: usize, path: &str) -> PathBuf {
        // The process of unshare itself has the mounts of its child.
        PathBuf::from(format!("/proc/{}/root{path}", self.machine(number).pid()))
    }

    /// A command line of `iam-kms-unlock` as the operator, who has an access key in a file.
    pub fn unlock(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(dist("bin/iam-kms-unlock"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.sandbox.path("home"))
            .env("AWS_ENDPOINT_URL", self.aws.endpoint())
            .env("AWS_REGION", "us-east-1")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_SHARED_CREDENTIALS_FILE", self.aws.path("credentials"))
            .stdin(Stdio::null());
        command
    }
}

/// Takes connections from the machines to a server that only listens on the loopback interface.
fn forward_to(endpoint: &str) -> String {
    let server = endpoint.rsplit('/').next().unwrap().to_owned();
    let listener = TcpListener::bind((OPERATOR, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    // It ends with the tests.
    thread::spawn(move || {
        for from in listener.incoming() {
            let (from, to) = (from.unwrap(), TcpStream::connect(&server));
            if let Ok(to) = to {
                let back = (to.try_clone().unwrap(), from.try_clone().unwrap());
                thread::spawn(move || copy(&from, &to));
                thread::spawn(move || copy(&back.0, &back.1));
            }
        }
    });
    format!("http://{address}")
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    match io::copy(&mut from, &mut to) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => drop(to.shutdown(Shutdown::Write)),
    }
}
