//! Tokens and their draws as the gateway and its rail see them.

use async_trait::async_trait;
use farebox_core::{
    Draw, DrawEnd, DrawId, Drawn, Invoice, NewToken, PassId, PaymentHash, Timestamp, Token,
    ports::{LedgerUnavailable, NewsCursor, NewsRead, NotedNews, TokenBooks, TokenFilter},
};
use rusqlite::Connection;

use crate::{SqliteLedger, draws, tokens, writer::Orphan};

#[async_trait]
impl TokenBooks for SqliteLedger {
    async fn sell(&self, token: NewToken) -> Result<(), LedgerUnavailable> {
        self.write("sell a token", Orphan::Skip, move |c| tokens::sell(c, token)).await
    }

    async fn token(&self, pass: PassId) -> Result<Option<Token>, LedgerUnavailable> {
        let work = move |c: &Connection| Ok(tokens::token(c, pass)?.map(|stored| stored.token));
        self.read("look a token up", work).await
    }

    async fn draw(&self, draw: Draw) -> Result<Drawn, LedgerUnavailable> {
        self.write("draw a call", Orphan::Skip, move |c| draws::draw(c, &draw)).await
    }

    async fn end_draw(
        &self,
        pass: PassId,
        draw: DrawId,
        end: DrawEnd,
        now: Timestamp,
    ) -> Result<(), LedgerUnavailable> {
        let by = self.instance.clone();
        let times = (now, now.plus(self.answers_kept_for));
        self.write("end a draw", Orphan::Do, move |c| draws::end(c, (pass, draw), &end, &by, times)).await
    }

    async fn note_news(
        &self,
        news: Vec<NotedNews>,
        read: Option<NewsRead>,
        now: Timestamp,
    ) -> Result<Vec<PassId>, LedgerUnavailable> {
        let work = move |c: &Connection| tokens::note_news(c, &news, read.as_ref(), now);
        self.write("note news of invoices", Orphan::Do, work).await
    }

    async fn news_cursor(&self, node: &str) -> Result<Option<NewsCursor>, LedgerUnavailable> {
        let node = node.to_owned();
        self.read("read how far a node's news were read", move |c| tokens::news_cursor(c, &node)).await
    }

    async fn unsettled_invoices(
        &self,
        node: &str,
        expired_before: Timestamp,
        limit: u32,
    ) -> Result<Vec<Invoice>, LedgerUnavailable> {
        let node = node.to_owned();
        let work = move |c: &Connection| tokens::unsettled_invoices(c, &node, expired_before, limit);
        self.read("list unsettled invoices", work).await
    }

    async fn unsettled_elsewhere(
        &self,
        node: &str,
        after: Option<(Timestamp, PaymentHash)>,
        limit: u32,
    ) -> Result<Vec<Invoice>, LedgerUnavailable> {
        let node = node.to_owned();
        let work = move |c: &Connection| tokens::unsettled_elsewhere(c, &node, after, limit);
        self.read("list unsettled invoices of other nodes", work).await
    }

    async fn tokens(&self, filter: &TokenFilter) -> Result<Vec<Token>, LedgerUnavailable> {
        let filter = filter.clone();
        self.read("list tokens", move |c| tokens::list(c, &filter)).await
    }

    async fn revoke(&self, pass: PassId, now: Timestamp) -> Result<Option<Token>, LedgerUnavailable> {
        self.write("revoke a token", Orphan::Do, move |c| tokens::revoke(c, pass, now)).await
    }
}
