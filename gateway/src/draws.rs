//! A request whose call is drawn: upstream, the draw's end in the books, answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use farebox_core::{Charged, DrawPermit, Refusal, RequestId};
use http::Response;

use crate::{
    answer::books_unavailable,
    body::Body,
    challenge::{Desk, Told},
    delivery::DeliveryBody,
    hold::Hold,
    proxy::Inbound,
    ride::{self, Broken, BrokenBy, Caller, Named, Ride, Served},
    till::Till,
    upstream::Upstreams,
};

/// How long a draw is believed to be under way, without a word from its process: longer than any stream. Whoever holds it tells the books of
/// its end until they listen, and the next start of a process that died ends what it was at.
pub(crate) const LEASE: Duration = Duration::from_secs(24 * 3600);

/// The most calls that are taken, or whose end is not in the books yet. Without it, callers who insist while the books do not listen would
/// fill the memory with ends to be told.
const OPEN_DRAWS_MAX: usize = 16_384;

/// How many calls are open.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenDraws(Arc<AtomicUsize>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenDraw(OpenDraws);

impl OpenDraws {
    /// One more, unless there are too many.
    pub(crate) fn open(&self) -> Option<OpenDraw> {
        let open = OpenDraw(self.clone());
        (self.0.fetch_add(1, Ordering::Relaxed) < OPEN_DRAWS_MAX).then_some(open)
    }
}

impl Drop for OpenDraw {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
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
        match broken.by {
            BrokenBy::Upstream => self.hold.give_back().await,
            // The upstream may have worked on what it had of the request.
            BrokenBy::Caller => self.hold.abandoned(),
        }
        self.desk.refuse(&broken.uncharged("the call is the token's again"), None)
    }
}

/// The upstream has done its work, and the books did not say that they have the end of it.
fn not_booked() -> Refusal {
    Refusal { charged: Charged::Unknown, ..books_unavailable() }
}
