//! What a process tells of itself, whatever it does.

use std::time::Instant;

use splitrpc_telemetry::Writer;

/// Its version, age, processor time and memory, and whether it takes requests.
pub fn metrics(out: &mut Writer, started: Instant, ready: bool) {
    out.head("splitrpc_build_info", "gauge", "The version that runs.");
    out.sample("splitrpc_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    out.head("splitrpc_uptime_seconds", "gauge", "Seconds since the server was started.");
    out.sample("splitrpc_uptime_seconds", &[], started.elapsed().as_secs_f64());
    out.head("splitrpc_ready", "gauge", "1 while requests are taken.");
    out.sample("splitrpc_ready", &[], f64::from(u8::from(ready)));
    out.head("splitrpc_process_cpu_seconds_total", "counter", "Processor time of all threads.");
    out.sample("splitrpc_process_cpu_seconds_total", &[], splitrpc_socket::cpu_time_process().as_secs_f64());
    if let Some(kib) = super::memory::kib("/proc/self/status", "VmRSS:") {
        out.head("splitrpc_process_resident_bytes", "gauge", "Resident memory.");
        out.sample("splitrpc_process_resident_bytes", &[], (kib << 10) as f64);
    }
}
