//! The proof that the agent's processor touches no payload of a request: it may not. The slots' pages are taken from the agent's process while the card, a
//! process of its own, writes to them through the memory that was exported.

use std::process::Command;

use host_agent::config::{Config, Overrides};
use host_agent::serve::{Server, build};
use splitrpc_client::{Client, Input, Transport};
use splitrpc_wire::DType;
use splitrpc_wire::path::Mover;

use crate::rig::{Bus, Process, ask, noise, null_answer};

/// Tells a process of this test program that it is an agent, and which pages it gives up.
const AGENT: &str = "SPLITRPC_TEST_AGENT";
/// The file that holds an agent's slots.
const SLOTS: &str = "splitrpc-0";
const SIGSEGV: i32 = 11;

/// An agent of this program, and the card that it serves with. What the agent says of the pages that it has given up ends its line.
fn both(bus: &Bus, gives_up: &str) -> (Process, Process, usize) {
    let card = bus.card("");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "untouched::be_an_agent", "--nocapture"]).env(AGENT, gives_up);
    let (agent, said) = bus.agent_of(command, "");
    card.says("serving");
    (card, agent, said.rsplit(' ').next().unwrap().parse().unwrap())
}

/// Bytes of the agent's slots that it may not touch, and those that it may, as the kernel says.
fn rights(agent: &Process) -> (usize, usize) {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", agent.pid())).unwrap();
    let mut rights = (0, 0);
    for line in maps.lines().filter(|line| line.contains(&format!("/memfd:{SLOTS} "))) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let bytes = usize::from_str_radix(end, 16).unwrap() - usize::from_str_radix(start, 16).unwrap();
        match line.contains(" ---s ") {
            true => rights.0 += bytes,
            false => rights.1 += bytes,
        }
    }
    rights
}

/// Asks the model that reads its input.
fn ask_digits(client: &mut Client) -> bool {
    let image = vec![0; 64 * 4];
    client.infer("digits", &[Input::new("IMAGE", DType::Fp32, &[1, 8, 8], &image[..])]).is_ok()
}

#[test]
fn no_byte_of_a_request_is_touched_by_the_agent_of_a_card() {
    let bus = Bus::new();
    let (_card, agent, forbidden) = both(&bus, "inputs");
    let before = rights(&agent);
    // All slots of all inputs, among them those of eight requests at once of the largest class.
    assert!(before.0 == forbidden && forbidden > 8 * (1 << 20), "{before:?}, {forbidden}");
    for transport in [Transport::Tcp, Transport::Udp] {
        let mut client = bus.client(transport);
        // More than there are slots of a class, so that each of them is used.
        for seed in 0..20 {
            for size in [0, 1, 4096, 602_112] {
                let response = ask(&mut client, "null", &noise(seed, size)).unwrap();
                assert!(response.data() == null_answer(), "{size} bytes over {transport:?}");
                let path = response.path().unwrap();
                assert_eq!((path.mover, path.payload_bytes), (Mover::DocaDma, size as u32));
                client.recycle(response);
            }
        }
        // The card takes the answer from where it wrote the request, so this too is right without the agent's help.
        let bytes = noise(77, 602_112);
        assert!(ask(&mut client, "echo", &bytes).unwrap().data() == bytes, "over {transport:?}");
    }
    assert_eq!(rights(&agent), before, "the agent has given itself rights again");
    // So a model that does read its input must not survive that.
    assert!(!ask_digits(&mut bus.client(Transport::Tcp)));
    assert_eq!(agent.died_of(), Some(SIGSEGV));
}

#[test]
fn the_same_agent_with_all_its_rights_answers_for_the_model_that_reads() {
    let bus = Bus::new();
    let (_card, agent, forbidden) = both(&bus, "nothing");
    assert_eq!((forbidden, rights(&agent).0), (0, 0));
    assert!(ask_digits(&mut bus.client(Transport::Tcp)));
    assert!(agent.end());
}

/// What such an agent's process is: the library of `host-agent`, as its program uses it.
#[test]
fn be_an_agent() {
    let Ok(gives_up) = std::env::var(AGENT) else { return };
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM]).unwrap();
    let server = Server::start(build(Config::load(&Overrides::default()).unwrap()).unwrap()).unwrap();
    let (mut offset, mut forbidden) = (0, 0);
    // Inputs lie first. What is said of a tensor lies behind it, and the agent reads that.
    for (_, layout) in &server.built.plan.inputs {
        if gives_up == "inputs" {
            forbidden += splitrpc_arena::forbid(SLOTS, offset, layout.meta_offset()).unwrap();
        }
        offset += layout.bytes();
    }
    println!("ready, may not touch {forbidden}");
    assert!(signals.forever().next().is_some());
    assert!(server.stop());
}
