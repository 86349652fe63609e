//! A request whose call is drawn: upstream, the draw's end in the books, answer.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use farebox_core::{BROKEN_DRAWS_MAX, Charged, DrawPermit, PassId, Refusal, RequestId};
use http::Response;
use parking_lot::Mutex;

use crate::{
    answer::books_unavailable,
    body::Body,
    challenge::{Desk, Told},
    delivery::DeliveryBody,
    hold::Hold,
    proxy::Inbound,
    ride::{self, Broken, Caller, Named, Ride, Served},
    till::Till,
    upstream::{BrokenBy, Upstreams},
};

/// How long a draw is believed to be under way, without a word from its process: longer than any stream. Whoever holds it tells the books of
/// its end until they listen, and the next start of a process that died ends what it was at.
pub(crate) const LEASE: Duration = Duration::from_secs(24 * 3600);

/// The most calls that are taken, or whose end is not in the books yet. Without it, callers who insist while the books do not listen would
/// fill the memory with ends to be told.
const OPEN_DRAWS_MAX: usize = 16_384;

/// The most of them of one pass, so that one token cannot keep all others from theirs. Requests that wait for its last calls count.
const OPEN_DRAWS_OF_PASS_MAX: usize = 256;

/// The calls that are open.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenDraws(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_pass: HashMap<PassId, usize>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenDraw {
    draws: OpenDraws,
    pass: PassId,
}

impl OpenDraws {
    /// One more of this pass, unless there are too many.
    pub(crate) fn open(&self, pass: PassId) -> Option<OpenDraw> {
        let mut open = self.0.lock();
        let of_pass = open.by_pass.get(&pass).copied().unwrap_or(0);
        if open.all >= OPEN_DRAWS_MAX || of_pass >= OPEN_DRAWS_OF_PASS_MAX {
            return None;
        }
        open.all += 1;
        open.by_pass.insert(pass, of_pass + 1);
        Some(OpenDraw { draws: self.clone(), pass })
    }
}

impl Drop for OpenDraw {
    fn drop(&mut self) {
        let mut open = self.draws.0.lock();
        open.all -= 1;
        if let Entry::Occupied(mut of_pass) = open.by_pass.entry(self.pass) {
            *of_pass.get_mut() -= 1;
            if *of_pass.get() == 0 {
                of_pass.remove();
            }
        }
    }
}

/// What a request needs after its draw.
pub(crate) struct DrawnFare {
    pub(crate) till: Arc<Till>,
    pub(crate) upstreams: Arc<Upstreams>,
    pub(crate) desk: Arc<Desk>,
    pub(crate) request: RequestId,
    pub(crate) permit: DrawPermit,
    pub(crate) hold: Hold,
}

impl Ride for DrawnFare {
    fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    async fn ride(self, inbound: Inbound, caller: &Caller) -> Response<Body> {
        let payment = self.permit.payment();
        let named = Named { payer: &payment.payer, payment: payment.id, request: &self.request };
        let served = match ride::call_upstream(&self.till, &self.upstreams, named, inbound).await {
            Ok(served) if served.status() < 500 => served,
            Ok(_) => return self.give_back(Broken::new(502, "upstream_error", "the upstream failed")).await,
            Err(broken) => return self.give_back(broken).await,
        };
        if caller.is_closed() {
            return self.nobody_there(&served);
        }
        self.deliver(served).await
    }

    /// The hold was dropped with the task.
    fn lost(desk: &Desk) -> Response<Body> {
        desk.refuse(&not_booked(), None)
    }
}

impl DrawnFare {
    /// Hands the answer over, once its delivery is in the books. The end of a stream waits for them.
    async fn deliver(self, served: Served) -> Response<Body> {
        let Self { desk, permit, hold, .. } = self;
        let told = Told::Pass { left: permit.left() };
        let response = match served {
            Served::Streaming(response) => {
                let (head, body) = response.into_parts();
                let body = DeliveryBody::new(&head, body, hold);
                Response::from_parts(head, Body::Delivery(Box::new(body)))
            }
            whole => {
                let answer = hold.keeps_answers().then(|| whole.to_be_kept()).flatten();
                if hold.deliver(answer).await.is_err() {
                    return desk.refuse(&not_booked(), None);
                }
                whole.into_response()
            }
        };
        desk.paid(response, permit.payment().id, &told)
    }

    /// The caller hung up, and the upstream has done its work. An answer that is kept is delivered: the same key gets it.
    fn nobody_there(self, served: &Served) -> Response<Body> {
        match served.to_be_kept().filter(|_| self.hold.keeps_answers()) {
            Some(answer) => self.hold.keep(answer),
            None => self.hold.abandoned(),
        }
        Response::default()
    }

    async fn give_back(self, broken: Broken) -> Response<Body> {
        let refusal = match broken.by {
            BrokenBy::Upstream => {
                self.hold.give_back().await;
                broken.uncharged("the call is the token's again")
            }
            BrokenBy::Caller => {
                self.hold.request_broke_off();
                let words = format!(
                    "the request was not sent whole, of which the call comes back {BROKEN_DRAWS_MAX} times in a token's life"
                );
                Refusal { charged: Charged::Unknown, ..broken.uncharged(&words) }
            }
        };
        self.desk.refuse(&refusal, None)
    }
}

/// The upstream has done its work, and the books did not say that they have the end of it.
fn not_booked() -> Refusal {
    Refusal { charged: Charged::Unknown, ..books_unavailable() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_cannot_keep_the_others_from_their_calls() {
        let draws = OpenDraws::default();
        let [greedy, other] = [PassId([1; 32]), PassId([2; 32])];
        let mut open: Vec<_> = (0..OPEN_DRAWS_OF_PASS_MAX).map(|_| draws.open(greedy).expect("a call")).collect();
        assert!(draws.open(greedy).is_none());
        drop(draws.open(other).expect("another's call"));
        open.pop();
        open.push(draws.open(greedy).expect("the one that has ended"));
        assert!(draws.open(greedy).is_none());
        drop(open);
        assert!(draws.0.lock().by_pass.is_empty() && draws.0.lock().all == 0);
    }

    #[test]
    fn all_tokens_together_have_a_bound_too() {
        let draws = OpenDraws::default();
        let pass = |n: usize| PassId([u8::try_from(n / OPEN_DRAWS_OF_PASS_MAX).expect("a byte"); 32]);
        let open: Vec<_> = (0..OPEN_DRAWS_MAX).map(|n| draws.open(pass(n)).expect("a call")).collect();
        assert!(draws.open(PassId([255; 32])).is_none());
        assert_eq!(open.len(), OPEN_DRAWS_MAX);
    }
}
