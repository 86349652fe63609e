//! Tokens and their draws in memory.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use farebox_core::{
    Answer, AuditEntry, Binding, CallerId, Draw, DrawEnd, DrawId, DrawPermit, DrawRuling, Drawn, Grant, InstanceId,
    Invoice, InvoiceState, KeptAnswers, KeyUse, NewToken, PaidBefore, PassAccount, PassId, PassPayment, PaymentEvent,
    PaymentHash, PaymentId, Timestamp, Token,
    ports::{LedgerUnavailable, NewsCursor, NewsRead, NotedNews, TokenBooks, TokenFilter},
};

use super::{Books, MemoryLedger, PAGE_ROWS, unavailable};

/// How long a token whose invoice was never paid is kept after its time, the same as every ledger's.
const UNPAID_KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Tokens in the order in which they were sold, and how far the nodes' news were read.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens {
    rows: Vec<TokenRow>,
    cursors: BTreeMap<String, NewsCursor>,
}

impl Tokens {
    fn prune_unpaid(&mut self, now: Timestamp) {
        self.rows.retain(|row| {
            let over = matches!(row.token.state, InvoiceState::Expired | InvoiceState::Cancelled);
            !over || row.token.sold.invoice.expires_at.plus(UNPAID_KEPT_FOR) > now
        });
    }
}

#[derive(Clone, Debug)]
struct TokenRow {
    token: Token,
    broken: u32,
    draws: BTreeMap<DrawId, OpenDraw>,
    kept: BTreeMap<CallerId, Kept>,
}

#[derive(Clone, Debug)]
struct OpenDraw {
    key: Option<CallerId>,
    request: CalledFor,
    holder: InstanceId,
    lease_until: Timestamp,
    taken_at: Timestamp,
}

#[derive(Clone, Debug)]
struct Kept {
    request: CalledFor,
    until: Timestamp,
    answer: Option<Answer>,
}

/// Route, method and resource: what a key is good for.
type CalledFor = (String, String, String);

fn called_for(binding: &Binding) -> CalledFor {
    (binding.route.as_str().to_owned(), binding.method.clone(), binding.resource.clone())
}

impl TokenRow {
    fn account(&self) -> PassAccount {
        PassAccount {
            grant: self.token.sold.grant,
            invoice: self.token.state,
            valid_until: self.token.sold.valid_until,
            revoked_at: self.token.revoked_at,
            used: self.token.used,
            broken: self.broken,
        }
    }

    fn keep(&mut self, account: PassAccount) {
        self.token.used = account.used;
        self.broken = account.broken;
    }

    fn key_use(&self, draw: &Draw) -> KeyUse {
        let Some(key) = &draw.key else { return KeyUse::NoKey };
        let request = called_for(&draw.binding);
        let under_way = self.draws.values().find(|open| open.key.as_ref() == Some(key));
        let kept = self.kept.get(key).filter(|kept| draw.now < kept.until);
        match (under_way, kept) {
            (Some(open), _) if open.request != request => KeyUse::Foreign,
            (Some(_), _) => KeyUse::UnderWay,
            (None, Some(kept)) if kept.request != request => KeyUse::Foreign,
            (None, Some(_)) => KeyUse::Delivered,
            (None, None) => KeyUse::New,
        }
    }

    fn kept_answers(&self, now: Timestamp) -> KeptAnswers {
        let answers = self.kept.values().filter(|kept| now < kept.until).filter_map(|kept| kept.answer.as_ref());
        answers.fold(KeptAnswers::default(), |kept, answer| KeptAnswers {
            answers: kept.answers + 1,
            body_bytes: kept.body_bytes + answer.body.len() as u64,
        })
    }

    /// Takes back the draws that `gone` says nobody is at, and tells how many.
    fn take_back(&mut self, gone: impl Fn(&OpenDraw) -> bool) -> u32 {
        let before = self.draws.len();
        let mut account = self.account();
        self.draws.retain(|_, open| {
            let gone = gone(open);
            if gone {
                account.end(&DrawEnd::Returned);
            }
            !gone
        });
        self.keep(account);
        u32::try_from(before - self.draws.len()).unwrap_or(u32::MAX)
    }
}

impl MemoryLedger {
    /// Every token, in the order in which they were sold.
    #[must_use]
    pub fn sold_tokens(&self) -> Vec<Token> {
        self.books.lock().tokens.rows.iter().map(|row| row.token.clone()).collect()
    }

    /// How many draws of this pass have not ended.
    #[must_use]
    pub fn draws_under_way(&self, pass: PassId) -> usize {
        self.books.lock().tokens.rows.iter().filter(|r| r.token.sold.pass == pass).map(|r| r.draws.len()).sum()
    }
}

impl Books {
    /// When the newest draw that has not ended was made.
    pub(super) fn drawn_last(&self) -> Timestamp {
        let draws = self.tokens.rows.iter().flat_map(|row| row.draws.values());
        draws.map(|open| open.taken_at).max().unwrap_or(Timestamp::from_unix_ms(0))
    }

    /// Whoever drew them is dead: the calls are their holders' again.
    pub(super) fn return_draws_of_others(&mut self, me: &InstanceId, now: Timestamp) -> Result<(), LedgerUnavailable> {
        let mut returned = Vec::new();
        for row in &mut self.tokens.rows {
            let count = row.take_back(|open| open.holder != *me);
            if count > 0 {
                returned.push(AuditEntry::returned(&row.token, count, now));
            }
        }
        self.append(&returned)
    }

    fn sell(&mut self, new: NewToken) -> Result<(), LedgerUnavailable> {
        let refused = |why| Err(unavailable("sell a token", why));
        let token = Token::first(new);
        let sold = &token.sold;
        if sold.invoice.amount_msat == 0 {
            return refused("its invoice asks for nothing");
        }
        let mut rows = self.tokens.rows.iter().map(|row| &row.token.sold);
        if let Some(known) = rows.find(|k| k.pass == sold.pass || k.invoice.payment_hash == sold.invoice.payment_hash) {
            return if known == sold { Ok(()) } else { refused("its pass or its invoice is another token's") };
        }
        let (draws, kept) = (BTreeMap::new(), BTreeMap::new());
        let now = token.sold.invoice.created_at;
        self.tokens.rows.push(TokenRow { token, broken: 0, draws, kept });
        self.tokens.prune_unpaid(now);
        Ok(())
    }

    fn row_mut(&mut self, pass: PassId) -> Option<&mut TokenRow> {
        self.tokens.rows.iter_mut().find(|row| row.token.sold.pass == pass)
    }

    /// The payment that the token is due, in the books and in the audit log.
    fn book(&mut self, at: usize, id: PaymentId, now: Timestamp) -> Result<(), LedgerUnavailable> {
        let token = &self.tokens.rows[at].token;
        let known = token.payment.and_then(|id| self.payments.get(&id));
        let Some(due) = token.payment_due(known, id, now) else { return Ok(()) };
        let entry = match known {
            Some(known) => AuditEntry::raised(known, &due, now),
            None if self.payments.contains_key(&id) => return Err(unavailable("book a payment", "its id is taken")),
            None => AuditEntry::claimed(&due, now),
        };
        self.append(&[entry])?;
        self.tokens.rows[at].token.payment = Some(due.id);
        self.payments.insert(due.id, due);
        Ok(())
    }

    fn draw(&mut self, draw: &Draw) -> Result<Drawn, LedgerUnavailable> {
        let fits =
            |row: &TokenRow| row.token.sold.pass == draw.pass && row.token.sold.invoice.payment_hash == draw.proved;
        let Some(at) = self.tokens.rows.iter().position(fits) else { return Ok(Drawn::Unknown) };
        let row = &mut self.tokens.rows[at];
        if row.token.payment.is_none() && self.payments.contains_key(&draw.payment) {
            return Err(unavailable("draw a call", "its payment's id is taken"));
        }
        let paid_before = if row.token.payment.is_some() { PaidBefore::Known } else { PaidBefore::Unheard };
        row.token.hear_preimage();
        self.book(at, draw.payment, draw.now)?;
        let row = &mut self.tokens.rows[at];
        // Only a pass that nothing came for has no payment, and it is never granted.
        let payment = row.token.payment.map(|id| PassPayment { id, payer: row.token.sold.payer() });
        let payment = payment.ok_or_else(|| unavailable("draw a call", "it has no payment"));
        let mut ruling = row.account().rule(row.key_use(draw), draw.now);
        let mut returned = None;
        let before = row.clone();
        if ruling == DrawRuling::NoneLeft {
            let count = row.take_back(|open| open.lease_until <= draw.now && open.holder != draw.holder);
            if count > 0 {
                returned = Some(AuditEntry::returned(&row.token, count, draw.now));
                ruling = row.account().rule(row.key_use(draw), draw.now);
            }
        }
        let permit = |payment, left| DrawPermit::granted(draw.pass, draw.id, payment, left, paid_before);
        let drawn = match ruling {
            DrawRuling::Take { .. } if row.draws.contains_key(&draw.id) => {
                *row = before;
                return Err(unavailable("draw a call", "its id is taken"));
            }
            DrawRuling::Take { left } => {
                row.take(draw);
                Drawn::Granted(permit(payment?, left))
            }
            DrawRuling::Look => Drawn::Granted(permit(payment?, None)),
            DrawRuling::Replay => {
                let kept = draw.key.as_ref().and_then(|key| row.kept.get(key));
                Drawn::Replayed { payment: payment?, answer: kept.and_then(|kept| kept.answer.clone()) }
            }
            DrawRuling::NoneLeft if row.draws.is_empty() => Drawn::Spent,
            DrawRuling::NoneLeft => Drawn::Busy,
            DrawRuling::Foreign => Drawn::Foreign,
            DrawRuling::Expired => Drawn::Expired,
            DrawRuling::Revoked => Drawn::Revoked,
            DrawRuling::Underpaid => Drawn::Underpaid,
        };
        self.append(returned.as_slice())?;
        Ok(drawn)
    }

    fn end_draw(
        &mut self,
        (pass, draw): (PassId, DrawId),
        end: DrawEnd,
        (by, now, until): (&InstanceId, Timestamp, Timestamp),
    ) -> Result<(), LedgerUnavailable> {
        let Some(row) = self.row_mut(pass) else { return Ok(()) };
        let open = row.draws.remove(&draw);
        let looked = open.is_none() && matches!(row.token.sold.grant, Grant::For(_));
        if open.is_some() {
            let mut account = row.account();
            account.end(&end);
            row.keep(account);
        }
        let payment = row.token.payment;
        let DrawEnd::Delivered { answer } = end else { return Ok(()) };
        if let Some(OpenDraw { key: Some(key), request, .. }) = &open {
            let answer = row.kept_answers(now).room_for(answer.as_ref()).cloned();
            row.kept.insert(key.clone(), Kept { request: request.clone(), until, answer });
        }
        let payment = payment.filter(|_| open.is_some() || looked).and_then(|id| self.payments.get_mut(&id));
        if let Some(payment) = payment.filter(|p| p.delivery == farebox_core::Delivery::Pending) {
            let delivered = payment.apply(&PaymentEvent::Delivered { answer: None }, by, now);
            delivered.map_err(|e| LedgerUnavailable { operation: "end a draw", source: e.into() })?;
        }
        Ok(())
    }

    fn note_news(
        &mut self,
        news: &[NotedNews],
        read: Option<NewsRead>,
        now: Timestamp,
    ) -> Result<Vec<PassId>, LedgerUnavailable> {
        let mut paid = Vec::new();
        for noted in news {
            let hash = |row: &TokenRow| row.token.sold.invoice.payment_hash == noted.hash;
            let Some(at) = self.tokens.rows.iter().position(hash) else { continue };
            let token = &mut self.tokens.rows[at].token;
            let before = token.state;
            token.hear(noted.news);
            if token.state == InvoiceState::Settled && before != InvoiceState::Settled {
                paid.push(token.sold.pass);
            }
            self.book(at, noted.payment, now)?;
        }
        if let Some(read) = read {
            self.tokens.cursors.insert(read.node.as_ref().to_owned(), read.cursor);
        }
        self.tokens.prune_unpaid(now);
        Ok(paid)
    }
}

impl TokenRow {
    fn take(&mut self, draw: &Draw) {
        let open = OpenDraw {
            key: draw.key.clone(),
            request: called_for(&draw.binding),
            holder: draw.holder.clone(),
            lease_until: draw.now.plus(draw.lease),
            taken_at: draw.now,
        };
        self.draws.insert(draw.id, open);
        let mut account = self.account();
        account.take();
        self.keep(account);
    }
}

#[async_trait]
impl TokenBooks for MemoryLedger {
    async fn sell(&self, token: NewToken) -> Result<(), LedgerUnavailable> {
        self.ask("sell a token", |books| books.sell(token))?
    }

    async fn token(&self, pass: PassId) -> Result<Option<Token>, LedgerUnavailable> {
        self.ask("look a token up", |books| books.row_mut(pass).map(|row| row.token.clone()))
    }

    async fn draw(&self, draw: Draw) -> Result<Drawn, LedgerUnavailable> {
        self.ask("draw a call", |books| books.draw(&draw))?
    }

    async fn end_draw(
        &self,
        pass: PassId,
        draw: DrawId,
        end: DrawEnd,
        now: Timestamp,
    ) -> Result<(), LedgerUnavailable> {
        let until = now.plus(self.answers_kept_for);
        self.ask("end a draw", |books| books.end_draw((pass, draw), end, (&self.instance, now, until)))?
    }

    async fn note_news(
        &self,
        news: Vec<NotedNews>,
        read: Option<NewsRead>,
        now: Timestamp,
    ) -> Result<Vec<PassId>, LedgerUnavailable> {
        self.ask("note news of invoices", |books| books.whole(|books| books.note_news(&news, read, now)))?
    }

    async fn news_cursor(&self, node: &str) -> Result<Option<NewsCursor>, LedgerUnavailable> {
        self.ask("read how far a node's news were read", |books| books.tokens.cursors.get(node).cloned())
    }

    async fn unsettled_invoices(
        &self,
        node: &str,
        expired_before: Timestamp,
        limit: u32,
    ) -> Result<Vec<Invoice>, LedgerUnavailable> {
        self.ask("list unsettled invoices", |books| {
            let tokens = books.tokens.rows.iter().map(|row| &row.token).filter(|token| {
                matches!(token.state, InvoiceState::Open | InvoiceState::Held)
                    && *token.sold.node == *node
                    && token.sold.invoice.expires_at < expired_before
            });
            let mut found: Vec<_> = tokens.map(|token| token.sold.invoice.clone()).collect();
            found.sort_by_key(|invoice| invoice.expires_at);
            found.truncate(limit as usize);
            found
        })
    }

    async fn unsettled_elsewhere(
        &self,
        node: &str,
        after: Option<(Timestamp, PaymentHash)>,
        limit: u32,
    ) -> Result<Vec<Invoice>, LedgerUnavailable> {
        self.ask("list unsettled invoices of other nodes", |books| {
            let place = |invoice: &Invoice| (invoice.expires_at, invoice.payment_hash);
            let tokens = books.tokens.rows.iter().map(|row| &row.token).filter(|token| {
                matches!(token.state, InvoiceState::Open | InvoiceState::Held)
                    && *token.sold.node != *node
                    && after.is_none_or(|after| place(&token.sold.invoice) > after)
            });
            let mut found: Vec<_> = tokens.map(|token| token.sold.invoice.clone()).collect();
            found.sort_by_key(place);
            found.truncate(limit as usize);
            found
        })
    }

    async fn tokens(&self, filter: &TokenFilter) -> Result<Vec<Token>, LedgerUnavailable> {
        let limit = if filter.limit == 0 { PAGE_ROWS } else { filter.limit };
        self.ask("list tokens", |books| {
            let rows = &books.tokens.rows;
            let end = match filter.before {
                None => rows.len(),
                Some(before) => rows
                    .iter()
                    .position(|row| row.token.sold.pass == before)
                    .ok_or_else(|| unavailable("list tokens", "there is no token to list from"))?,
            };
            let newest_first = rows[..end].iter().rev().map(|row| &row.token);
            Ok(newest_first.filter(|token| matches(token, filter)).take(limit as usize).cloned().collect())
        })?
    }

    async fn revoke(&self, pass: PassId, now: Timestamp) -> Result<Option<Token>, LedgerUnavailable> {
        self.ask("revoke a token", |books| {
            let Some(row) = books.row_mut(pass) else { return Ok(None) };
            if row.token.revoked_at.is_some() {
                return Ok(Some(row.token.clone()));
            }
            row.token.revoked_at = Some(now);
            row.token.sold.root_key = None;
            let token = row.token.clone();
            books.append(&[AuditEntry::revoked(&token, now)])?;
            Ok(Some(token))
        })?
    }
}

fn matches(token: &Token, filter: &TokenFilter) -> bool {
    filter.pass.is_none_or(|pass| token.sold.pass == pass)
        && filter.route.as_ref().is_none_or(|route| token.sold.route == *route)
        && filter.paid.is_none_or(|paid| paid == (token.state == InvoiceState::Settled))
}
