# mypy: disable-error-code="import-not-found,untyped-decorator,misc,no-any-return"
"""The stack the original brief names: FastAPI, SQLAlchemy's async ORM, pydantic models, REST."""

import os
from collections.abc import AsyncIterator
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Boolean, DateTime, Enum, literal_column, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column

engine = create_async_engine(
    os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"), pool_size=10, max_overflow=0
)
new_session = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class PriceRow(Base):
    __tablename__ = "prices"

    ticker: Mapped[str] = mapped_column(primary_key=True)
    timestamp: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    price: Mapped[Decimal]
    observed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    source: Mapped[str] = mapped_column(Enum("SCHEDULED", "REQUESTED", "BACKFILLED", name="price_source"))
    testnet: Mapped[bool]


class CandleRow(Base):
    __tablename__ = "candle_minutes"

    ticker: Mapped[str] = mapped_column(primary_key=True)
    start: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    open: Mapped[Decimal]
    high: Mapped[Decimal]
    low: Mapped[Decimal]
    close: Mapped[Decimal]
    samples: Mapped[int]
    complete: Mapped[bool] = column_property(literal_column("get_bit(seconds, 0) = 1", Boolean))


class CandleOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    start: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    samples: int
    complete: bool


class PriceOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    price: Decimal
    timestamp: datetime
    source: str


class FourOut(BaseModel):
    a: PriceOut | None
    b: PriceOut | None
    c: list[PriceOut]
    d: list[PriceOut]


async def get_session() -> AsyncIterator[Any]:
    async with new_session() as session:
        yield session


Session = Annotated[AsyncSession, Depends(get_session)]
app = FastAPI()


@app.get("/latest")
async def latest(session: Session, ticker: str) -> PriceOut | None:
    query = select(PriceRow).where(PriceRow.ticker == ticker).order_by(PriceRow.timestamp.desc()).limit(1)
    return (await session.scalars(query)).first()


@app.get("/history")
async def history(session: Session, ticker: str, limit: int = 100) -> list[PriceOut]:
    query = select(PriceRow).where(PriceRow.ticker == ticker).order_by(PriceRow.timestamp.desc()).limit(limit)
    return list((await session.scalars(query)).all())


@app.get("/period")
async def period(session: Session, ticker: str, from_dt: datetime, to_dt: datetime, limit: int = 100) -> list[PriceOut]:
    query = (
        select(PriceRow)
        .where(PriceRow.ticker == ticker, PriceRow.timestamp >= from_dt, PriceRow.timestamp <= to_dt)
        .order_by(PriceRow.timestamp)
        .limit(limit)
    )
    return list((await session.scalars(query)).all())


@app.get("/candles")
async def candles(session: Session, ticker: str, from_dt: datetime, to_dt: datetime) -> list[CandleOut]:
    query = (
        select(CandleRow)
        .where(CandleRow.ticker == ticker, CandleRow.start >= from_dt, CandleRow.start <= to_dt)
        .order_by(CandleRow.start)
    )
    return list((await session.scalars(query)).all())


@app.get("/four")
async def four(session: Session, first: str, second: str, limit: int) -> FourOut:
    """One request of its own, which is kinder than the four that such an API would usually take."""
    return FourOut.model_validate(
        {
            "a": await latest(session, first),
            "b": await latest(session, second),
            "c": await history(session, first, limit),
            "d": await history(session, second, limit),
        }
    )
