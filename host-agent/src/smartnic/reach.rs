//! What stays while cards come and go: the device, the doorbell, and what each card is shown.

use std::net::{SocketAddr, UdpSocket};

use nic_app::setup::{Exported, Hex, ModelShape, PoolShape, Setup};
use splitrpc_arena::Arena;
use splitrpc_doca::{Access, Device, Library, Lines, Memory};
use splitrpc_engine::{ModelPlan, ServerConfig};
use splitrpc_ring::CONTROL_LINES;

use super::CardError;
use super::shows::OnDevice;
use crate::config::{Config, Nic};
use crate::plan::Plan;

/// What each card is told of the models.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) plan: Plan,
    pub(super) models: Vec<ModelShape>,
    pub(super) catalog: Vec<u8>,
    pub(super) limits: ServerConfig,
}

impl Served {
    pub(super) fn new(config: &Config, plan: &Plan, models: &[ModelPlan<'_>], catalog: &[u8]) -> Served {
        let models = models.iter().map(ModelShape::from).collect();
        Served { plan: plan.clone(), models, catalog: catalog.to_vec(), limits: config.engine() }
    }
}

/// What one card is shown, for as long as it serves.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) ring: Lines,
    /// When these go, the card can no longer reach anything.
    _memory: Vec<Memory>,
}

/// Opens the card's device on this machine.
pub(super) fn open(library: &Library, nic: &Nic) -> Result<Device, CardError> {
    let all = Device::all(library)?;
    let address = match &nic.device {
        Some(address) => address,
        None => match all.iter().find(|device| device.can.client) {
            Some(device) => &device.address,
            None if all.is_empty() => {
                return Err(CardError::NoCard("nic.kind is smartnic, and DOCA knows of no device here".to_owned()));
            }
            None => {
                let known: Vec<_> = all.iter().map(|device| device.address.as_str()).collect();
                let known = known.join(", ");
                return Err(CardError::NoCard(format!(
                    "none of the devices here ({known}) can reach a card in DPU mode"
                )));
            }
        },
    };
    Ok(Device::open(library, address)?)
}

/// A doorbell, where one is wanted, at an address that the card can reach.
pub(super) fn doorbell(at: Option<SocketAddr>, emulated: bool) -> Result<Option<UdpSocket>, CardError> {
    if let Some(at) = at.filter(|at| at.ip().is_unspecified() || (at.ip().is_loopback() && !emulated)) {
        return Err(CardError::NoCard(format!(
            "nic.doorbell is {at}, where no card can reach this machine: set it to an address of this machine that the card reaches, with a port, or \
             to \"off\", and the agent polls"
        )));
    }
    let open = |address| {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let bind = |address| open(address).map_err(|error| CardError::Doorbell { address, error });
    at.map(bind).transpose()
}

/// Shows a card the slots, those on the device with them, and a fresh ring, and says what it needs to know of them.
pub(super) fn show(
    device: &Device,
    arena: &Arena,
    served: &Served,
    doorbell: Option<SocketAddr>,
    on_device: OnDevice,
) -> Result<(Setup, Shown), CardError> {
    let Served { plan, models, catalog, limits } = served;
    let entries = (2 * limits.requests as usize).clamp(2, splitrpc_ring::MAX_CAPACITY).next_power_of_two();
    let ring = Lines::new("splitrpc-ring", CONTROL_LINES + entries)?;
    let slots = Memory::of_arena(device, arena, Access::OtherWrites)?;
    let lines = Memory::of_arena(device, ring.arena(), Access::OtherWrites)?;
    let exported = |memory: &Memory| {
        Ok::<_, CardError>(Exported { description: Hex(memory.export()?), bytes: memory.len() as u64 })
    };
    let setup = Setup {
        arena: exported(&slots)?,
        ring: exported(&lines)?,
        ring_entries: entries as u32,
        pools: plan.all().iter().map(|(id, layout)| PoolShape::from((*id, layout))).collect(),
        input_pools: plan.inputs.len() as u16,
        device: on_device.pools,
        models: models.clone(),
        catalog: Hex(catalog.clone()),
        limits: *limits,
        doorbell,
        knock: KNOCK,
    };
    let mut memory = on_device.memory;
    memory.extend([slots, lines]);
    Ok((setup, Shown { ring, _memory: memory }))
}

/// What a knock says. It wakes an agent and tells it nothing, so it need not be a secret.
const KNOCK: u64 = u64::from_le_bytes(*b"splitrpc");
