//! What every way from a client to a model promises, whatever port receives a request, whatever mover carries it into its slots and whatever link tells the
//! agent of it: one set of scenarios, which run unchanged on each arm of the table below.

#[path = "../model_support/mod.rs"]
mod model_support;
#[expect(dead_code, reason = "what only the tests of a card need")]
#[path = "../smartnic/rig.rs"]
mod rig;

mod abuse;
mod answers;
mod arm;
mod order;

/// A test for each scenario and arm.
macro_rules! table {
    ([$($arm:ident: $transport:ident, $port:ident, $inner:ident;)+] $scenarios:tt) => {
        $(table! { @arm $arm, $transport, $port, $inner, $scenarios })+
    };
    (@arm $arm:ident, $transport:ident, $port:ident, $inner:ident, { $($file:ident: $($scenario:ident)+;)+ }) => {
        mod $arm {
            use splitrpc_client::Transport;
            use splitrpc_wire::path::Port;

            use crate::arm::{Arm, $inner};

            const ARM: Arm = Arm { transport: Transport::$transport, port: Port::$port, inner: $inner };

            $($(
                #[test]
                fn $scenario() {
                    crate::$file::$scenario(ARM.up());
                }
            )+)+
        }
    };
}

table! {
    [
        tcp_in_process: Tcp, Tcp, IN_PROCESS;
        udp_in_process: Udp, Udp, IN_PROCESS;
        tcp_by_a_card: Tcp, Tcp, CARD;
        udp_by_a_card: Udp, Udp, CARD;
    ]
    {
        answers:
            requests_of_all_sizes_are_answered
            each_of_several_tensors_lands_in_its_own_place
            what_cannot_be_is_refused_by_name_and_the_next_request_is_served;
        order:
            who_asks_for_more_than_there_are_slots_is_served_in_the_end
            answers_come_in_the_order_in_which_they_are_there
            who_is_urgent_goes_first
            what_is_under_way_at_the_end_is_answered;
        abuse:
            what_is_cancelled_gives_its_slots_back
            what_is_late_is_told_so_and_gives_its_slots_back
            clients_that_vanish_leave_nothing_behind;
    }
}
